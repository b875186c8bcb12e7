"""From a trained detector to the boxes of every photo of a data set."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgnn_geo.boxes.adjuster import BoxAdjuster, check_shared_stages
from pgnn_geo.boxes.image_boxes import ImageBoxes, boxes_to_photo, boxes_to_view
from pgnn_geo.boxes.weak_detector import WeakDetector, select_boxes
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.stems import stem_bank, stem_batches
from pgnn_geo.features.views import Progress, View, no_progress
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.precision import Precision, autocast
from pgnn_geo.ranks import ALONE, Ranks


@dataclass(frozen=True)
class DetectionConfig:
    """How a detector's boxes are inferred.

    Args:
        sizes (tuple of int, optional): Sides of the squares to which photos are resized; scores are
            averaged. Those of the detector's training if not given.
        flip (bool): Average with the mirrored photo.
        max_proposals (int): Proposals of a photo that are scored, the first ones.
        nms, min_score, max_boxes, vote: See :func:`~pgnn_geo.boxes.select_boxes`.
        adjust_steps (int): How often an adjuster, if there is one, moves the boxes.
        precision (str): :obj:`"auto"` or one of Lightning's names.

    Raises:
        InputError: If a number is out of range.
    """

    sizes: tuple[int, ...] | None = None
    flip: bool = True
    max_proposals: int = 1000
    nms: float = 0.3
    min_score: float = 1e-3
    max_boxes: int = 100
    vote: bool = True
    adjust_steps: int = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.sizes is not None and (not self.sizes or min(self.sizes) < 1):
            raise InputError(f"'sizes' must be one or more, each 1 or more, got {self.sizes}")
        if self.max_proposals < 1 or self.max_boxes < 1 or self.adjust_steps < 0:
            raise InputError(
                f"max_proposals={self.max_proposals}, max_boxes={self.max_boxes}, "
                f"adjust_steps={self.adjust_steps}: want 1, 1 and 0 or more"
            )

    def views(self, detector: WeakDetector) -> list[View]:
        """Every view of a photo that a detector is shown.

        Raises:
            InputError: If neither this nor the detector has a size.
        """
        sizes = self.sizes or detector.sizes
        if not sizes:
            raise InputError("This detector was not trained; say by 'sizes' how large photos are.")
        return [View(size, flip) for size in sizes for flip in (False, True)[: 1 + self.flip]]


def detect_boxes(
    detector: WeakDetector,
    dataset: TaggedDataset,
    proposals: Sequence[Tensor],
    config: DetectionConfig | None = None,
    use_tags: bool = True,
    adjuster: BoxAdjuster | None = None,
    stem_folder: Path | None = None,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[str, ImageBoxes]]:
    """Return an iterator of image id and boxes of every photo in order, in pixels of the photo.

    The frozen stages are run at once, the rest as boxes are asked for.

    Args:
        detector (WeakDetector): The network, in evaluation mode.
        dataset (TaggedDataset): :math:`M` photos.
        proposals (sequence of Tensor): For each, boxes :math:`(r, 4)` in its own pixels.
        config (DetectionConfig, optional): How; default values if not given.
        use_tags (bool): There are no boxes of classes that a photo is not tagged with, if it has
            tags. (default: :obj:`True`)
        adjuster (BoxAdjuster, optional): Moves the boxes. (default: :obj:`None`)
        stem_folder (Path, optional): Where outputs of frozen stages are kept for reuse; computed
            afresh if not given.
        progress (callable, optional): Progress display.
        ranks (Ranks): The processes that share the photos; each is given its own.
            (default: this one alone)

    Raises:
        InputError: If there are not proposals for each photo, or the adjuster does not fit.
    """
    config = config or DetectionConfig()
    backbone = detector.backbone
    if len(proposals) != len(dataset):
        raise InputError(f"Want proposals for each of {len(dataset)} photos, got {len(proposals)}.")
    if adjuster is not None:
        check_shared_stages(backbone, adjuster.backbone)
    views, streams = config.views(detector), []
    photos = ranks.share(range(len(dataset)))
    first = photos[0] if photos else 0
    for view in views:
        bank = None
        if stem_folder is not None:
            bank = stem_bank(
                backbone, dataset, stem_folder, view, progress, config.precision, ranks
            )
        streams.append(stem_batches(backbone, dataset, view, bank, 1, config.precision, first))
    shown = progress(zip(photos, *streams, strict=False), "detect", len(photos))
    return _detections(detector, dataset, proposals, config, use_tags, adjuster, shown)


@torch.no_grad()
def _detections(
    detector: WeakDetector,
    dataset: TaggedDataset,
    proposals: Sequence[Tensor],
    config: DetectionConfig,
    use_tags: bool,
    adjuster: BoxAdjuster | None,
    photos: Iterable[tuple[Any, ...]],
) -> Iterator[tuple[str, ImageBoxes]]:
    """Yield the boxes of photos: their number, and the frozen stages' output for each view."""
    backbone, views = detector.backbone, config.views(detector)
    for index, *stems in photos:
        height, width = dataset.photo_size(index)
        boxes = proposals[index][: config.max_proposals].float()
        tags = dataset.tags[index] if use_tags and dataset.tags is not None else None
        with autocast(config.precision, backbone.device):
            scores = []
            for view, stem in zip(views, stems, strict=True):
                own = _to_view(boxes, (height, width), view)
                output = detector.forward_features(backbone.trunk(stem), [own])
                scores.append(output.scores)
            mean = torch.stack(scores).mean(0)
            found = select_boxes(
                boxes,
                mean,
                tags,
                config.nms,
                config.min_score,
                config.max_boxes,
                config.vote,
            )
            if adjuster is not None:
                features = adjuster.backbone.trunk(stems[0])
                found = _adjusted(adjuster, features, found, (height, width), views[0], config)
        yield dataset.image_ids[index], found


class DetectorBoxes:
    """Boxes of a data set's photos by a detector: all are detected when the first is asked for.

    Of several processes each has those of its share.

    Args:
        detector (WeakDetector): The network, in evaluation mode.
        dataset (TaggedDataset): :math:`M` photos.
        proposals (sequence of Tensor): For each, boxes :math:`(r, 4)` in its own pixels.
        ledger (SupervisionLedger): What the detector was made from.
        ranks (Ranks): The processes that share the photos. (default: this one alone)
        config, use_tags, adjuster, stem_folder, progress: See :func:`detect_boxes`.
    """

    def __init__(
        self,
        detector: WeakDetector,
        dataset: TaggedDataset,
        proposals: Sequence[Tensor],
        ledger: SupervisionLedger,
        ranks: Ranks = ALONE,
        **options: Any,
    ) -> None:
        self.ledger = ledger
        self._found = detect_boxes(detector, dataset, proposals, ranks=ranks, **options)
        self._boxes: dict[str, ImageBoxes] = {}
        self._image_ids = frozenset(ranks.share(dataset.image_ids))

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(photos={len(self._image_ids)})"

    def __call__(self, image_id: str) -> ImageBoxes:
        """The boxes of a photo, in its own pixels.

        Raises:
            InputError: If the data set has no such photo, or it cannot be read.
        """
        if image_id not in self._image_ids:
            raise InputError(f"the detector was given no image '{image_id}'")
        self._boxes.update(self._found)  # an iterator: empty from the second time on
        return self._boxes[image_id]


def _adjusted(
    adjuster: BoxAdjuster,
    features: Tensor,
    found: ImageBoxes,
    size: tuple[int, int],
    view: View,
    config: DetectionConfig,
) -> ImageBoxes:
    """Move boxes of a photo as seen in one view; those that now coincide are dropped."""
    side = view.size, view.size
    shown = ImageBoxes(_to_view(found.boxes, size, view), found.classes, found.scores)
    moved = adjuster.adjust(features, [shown], side, config.adjust_steps)[0]
    boxes = boxes_to_photo(moved.boxes, (0, 0, size[1], size[0]), side, view.flip)
    return ImageBoxes(boxes, found.classes, found.scores).nms(config.nms)


def _to_view(boxes: Tensor, size: tuple[int, int], view: View) -> Tensor:
    return boxes_to_view(boxes, (0, 0, size[1], size[0]), (view.size, view.size), view.flip)
