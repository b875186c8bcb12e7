r"""Boxes from attention maps: what lies above several levels, in connected pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.boxes.components import component_boxes, connected_components
from pgnn_geo.boxes.image_boxes import ImageBoxes, boxes_to_photo
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger

ScoreName = Literal["overlap", "mean", "max"]


@dataclass(frozen=True)
class AttentionBoxConfig:
    r"""How attention maps become boxes.

    Args:
        levels (sequence of float): Thresholds, as fractions of the largest value of a class's map.
            (default: 0.1, 0.2, .., 0.9)
        score (str): Of a box: :obj:`"overlap"`, the soft IoU of the box :math:`b` and the map

            .. math::
                \frac{\sum_{x \in b} \sqrt{A(x)}}{|b| + \sum_{x \notin b} \sqrt{A(x)}}

            (the root, because the maps of a classifier are peaked), or :obj:`"mean"` or
            :obj:`"max"`, the mean or largest :math:`A` in the component. The mean prefers the
            smallest component; with the maximum all components around one peak are equally good,
            and the largest of them comes first. (default: :obj:`"overlap"`)
        nms (float): Overlap above which the worse of two boxes of a class is a duplicate.
            (default: :obj:`0.5`)
        min_area (float): Least area of a component as a fraction of the photo's.
            (default: :obj:`0.005`)
        side (int): Long side of the maps that are cut, interpolated between the positions of the
            attention map. (default: :obj:`96`)

    Raises:
        InputError: If a value is out of range.
    """

    levels: Sequence[float] = tuple(n / 10 for n in range(1, 10))
    score: ScoreName = "overlap"
    nms: float = 0.5
    min_area: float = 0.005
    side: int = 96

    def __post_init__(self) -> None:
        if not self.levels or not all(0 <= level < 1 for level in self.levels):
            raise InputError(f"levels={self.levels}: want one or more, each in [0, 1)")
        if self.score not in get_args(ScoreName):
            raise InputError(f"score={self.score!r}: want 'overlap', 'mean' or 'max'")
        if self.side < 1 or not 0 <= self.min_area < 1 or not 0 <= self.nms <= 1:
            raise InputError(
                f"side={self.side}, min_area={self.min_area}, nms={self.nms}: want 1 or more, "
                "0 or more but less than 1, and 0 to 1"
            )


def attention_boxes(
    maps: Tensor, classes: Tensor, size: tuple[int, int], config: AttentionBoxConfig | None = None
) -> ImageBoxes:
    r"""Find the boxes of a photo's attention maps, the highest score first.

    The map of each class is cut at every level; each connected component is a box, and of boxes
    that are nearly the same the best is kept.

    Args:
        maps (torch.Tensor): Maps of :math:`k` classes of one photo, 0 or more; they show the whole
            photo.
        classes (torch.Tensor): Their classes, 1..K.
        size (tuple of int): Height and width of the photo in pixels.
        config (AttentionBoxConfig, optional): How; default values if not given.

    Shapes:
        - **maps:** :math:`(k, h, w)`
        - **classes:** :math:`(k)`

    Raises:
        InputError: If the shapes do not fit or a map holds values that are not numbers.
    """
    config = config or AttentionBoxConfig()
    if maps.ndim != 3 or classes.shape != maps.shape[:1]:
        raise InputError(
            f"maps and classes: got {list(maps.shape)} and {list(classes.shape)}, want [k, h, w] "
            "and [k]"
        )
    if not maps.isfinite().all():
        raise InputError("maps hold values that are not numbers")
    if maps.numel() == 0:
        return ImageBoxes.empty()
    ratio = config.side / max(size)
    h, w = (max(1, round(n * ratio)) for n in size)
    maps = F.interpolate(maps[:, None].float(), (h, w), mode="bilinear", align_corners=False)[:, 0]
    maps = maps.clamp(min=0)
    maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float).tiny)

    levels = torch.tensor(config.levels, device=maps.device)
    masks = maps[:, None] > levels.view(1, -1, 1, 1)  # [k, levels, h, w]
    boxes, owner, place = component_boxes(connected_components(masks.flatten(0, 1)))
    row = owner.div(len(levels), rounding_mode="floor")  # the map that each box is of
    inside = place >= 0
    evidence = maps[:, None].expand_as(masks).flatten(0, 1)[inside]
    area = torch.bincount(place[inside], minlength=len(boxes))
    if config.score == "overlap":
        scores = _soft_iou(maps.sqrt(), row, boxes.long())
    else:
        reduce = "amax" if config.score == "max" else "mean"
        scores = torch.zeros(len(boxes), device=maps.device).scatter_reduce(
            0, place[inside], evidence, reduce, include_self=False
        )
    moved = boxes_to_photo(boxes, (0, 0, size[1], size[0]), (h, w))
    result = ImageBoxes(moved, classes.to(maps.device).long()[row], scores.clamp(0, 1))
    return result.pick(area >= config.min_area * h * w).nms(config.nms)


class AttentionBoxes:
    """Boxes of a data set's attention maps; nothing is trained.

    Args:
        maps (sequence of torch.Tensor): Maps :obj:`[k, h, w]` of each photo's :obj:`k` tagged
            classes in the order of the classes, as
            :func:`~pgnn_geo.labels.attention_maps` returns them.
        dataset (TaggedDataset): The photos and tags.
        ledger (SupervisionLedger, optional): What the maps were made from; the data set's tags if
            not given.
        config (AttentionBoxConfig, optional): How maps become boxes; default values if not given.

    Raises:
        InputError: If the maps are not those of the data set's photos and tags.
    """

    def __init__(
        self,
        maps: Sequence[Tensor],
        dataset: TaggedDataset,
        ledger: SupervisionLedger | None = None,
        config: AttentionBoxConfig | None = None,
    ) -> None:
        if dataset.tags is None:
            raise InputError("Boxes of attention maps need image tags; this split has none.")
        wanted = dataset.tags.bool().sum(dim=1).tolist()
        if (found := [len(photo) for photo in maps]) != wanted:
            raise InputError(
                f"maps: got {sum(found)} of {len(found)} photos, want {sum(wanted)} of "
                f"{len(wanted)}, one for each tag"
            )
        self.maps = maps
        self.dataset = dataset
        self.ledger = ledger or SupervisionLedger(tags="image tags")
        self.config = config or AttentionBoxConfig()
        self._index = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
        self._classes = [row.nonzero()[:, 0] + 1 for row in dataset.tags]

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(photos={len(self._index)})"

    def __call__(self, image_id: str) -> ImageBoxes:
        """The boxes of a photo, in its own pixels.

        Raises:
            InputError: If there are no maps of the photo, or it cannot be read.
        """
        if image_id not in self._index:
            raise InputError(f"there are no attention maps of image '{image_id}'")
        index = self._index[image_id]
        size = self.dataset.photo_size(index)
        return attention_boxes(self.maps[index], self._classes[index], size, self.config)


def _soft_iou(maps: Tensor, row: Tensor, boxes: Tensor) -> Tensor:
    """Soft IoU of boxes [n, 4], whole pixels, with the maps [k, h, w] of their rows [n]."""
    total = F.pad(maps.double().cumsum(1).cumsum(2), (1, 0, 1, 0))  # [k, h+1, w+1]
    x1, y1, x2, y2 = boxes.unbind(1)
    held = total[row, y2, x2] - total[row, y1, x2] - total[row, y2, x1] + total[row, y1, x1]
    area = (x2 - x1) * (y2 - y1)
    return (held / (area + total[row, -1, -1] - held)).float()
