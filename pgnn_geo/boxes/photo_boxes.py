"""The boxes of a whole data set, as the nodes of patch graphs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pgnn_geo.boxes.image_boxes import BoxSource, ImageBoxes
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError


class PhotoBoxes:
    """Boxes of every photo of a data set, of the classes it is tagged with, the best first.

    They are kept in pixels of the photos, and carried into the feature pixels of whatever is shown
    of them: the arguments :obj:`boxes` and :obj:`box_class` of :class:`~pgnn_geo.nn.PGNN`, which
    takes as many as it was made for. A photo may have none.

    Args:
        source (BoxSource): Asked for every photo.
        dataset (TaggedDataset): :math:`M` photos and their tags.

    Raises:
        InputError: If the data set has no tags, a photo cannot be read, or the source does not
            know it.
    """

    def __init__(self, source: BoxSource, dataset: TaggedDataset) -> None:
        if dataset.tags is None:
            raise InputError("Boxes of tagged classes need image tags; this split has none.")
        self.ledger = source.ledger
        self.sizes = torch.tensor([dataset.photo_size(i) for i in range(len(dataset))])
        tagged = torch.nn.functional.pad(dataset.tags > 0, (1, 0))  # class 0 is background
        self.boxes: list[ImageBoxes] = []
        for image_id, own in zip(dataset.image_ids, tagged, strict=True):
            found = source(image_id)
            found = found.pick(own[found.classes])
            self.boxes.append(found.top(len(found)))

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({len(self)} photos, {self.counts.sum()} boxes)"

    @property
    def counts(self) -> Tensor:
        """Number of boxes of each photo :math:`(M)`."""
        return torch.tensor([len(own) for own in self.boxes])

    def shown(
        self,
        rows: Tensor,
        size: Sequence[int],
        crop: Tensor | None = None,
        flip: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes in what is shown of some photos, cut at its borders, and their classes.

        Boxes of which less than a quarter is seen are left out, see :meth:`ImageBoxes.shown`.
        Arguments and shapes are those of :meth:`NodeBoxes.shown
        <pgnn_geo.graph.node_boxes.NodeBoxes.shown>`.
        """
        if crop is None:
            height, width = self.sizes[rows].T
            crop = torch.stack([0 * width, 0 * height, width, height], dim=1)
        flips = [False] * len(rows) if flip is None else flip.tolist()
        height, width = size
        views = [
            self.boxes[row].shown(part, (height, width), mirrored)
            for row, part, mirrored in zip(rows.tolist(), crop, flips, strict=True)
        ]
        return (
            [view.boxes.to(device) for view in views],
            [view.classes.to(device) for view in views],
        )
