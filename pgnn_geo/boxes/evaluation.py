r"""How good boxes are: CorLoc, average precision, and the recall of proposals.

No box is drawn by people here: the true boxes are those around the connected components of each
class in the true masks. They are for measuring only, and they are not the boxes of the objects: one
object that is seen in two parts has two, several objects that touch have one. Figures are therefore
not comparable with those measured on annotated boxes. Specks are left out: most components of VOC's
masks are a few pixels between two outlines.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from pgnn_geo.boxes.components import component_boxes, connected_components
from pgnn_geo.boxes.image_boxes import BoxSource, ImageBoxes
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.views import Progress, no_progress
from pgnn_geo.io.masks import IGNORE

BoxTable = Mapping[str, ImageBoxes]
"""Boxes of each image id."""


@dataclass(frozen=True)
class BoxScores:
    """CorLoc and average precision of every class; a class that no photo has is :obj:`nan`.

    Args:
        classes (tuple of str): Foreground names.
        corloc (tuple of float): CorLoc per class, see :func:`corloc`.
        average_precision (tuple of float): Per class, see :func:`average_precision`.
        images (int): Photos scored.
    """

    classes: tuple[str, ...]
    corloc: tuple[float, ...]
    average_precision: tuple[float, ...]
    images: int

    @property
    def mean_corloc(self) -> float:
        """Mean CorLoc over the classes."""
        return torch.tensor(self.corloc).nanmean().item()

    @property
    def mean_average_precision(self) -> float:
        """Mean average precision over the classes."""
        return torch.tensor(self.average_precision).nanmean().item()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, :obj:`nan` as :obj:`None`."""
        rows = zip(self.classes, self.corloc, self.average_precision, strict=True)
        return {
            "corloc": _plain(self.mean_corloc),
            "map": _plain(self.mean_average_precision),
            "per_class": {
                name: {"corloc": _plain(found), "ap": _plain(precision)}
                for name, found, precision in rows
            },
            "images": self.images,
        }


def boxes_of_mask(mask: Tensor, min_pixels: int = 100) -> ImageBoxes:
    r"""The true boxes of a mask: one per connected component of each class, score 1.

    Args:
        mask (torch.Tensor): Labels: 0 background, 1..K, 255 ignored (never part of a component).
        min_pixels (int): Smaller components have no box. (default: :obj:`100`)

    Shapes:
        - **mask:** :math:`(H, W)`

    Raises:
        InputError: If :obj:`mask` is no such image.
    """
    if mask.ndim != 2 or mask.is_floating_point() or mask.dtype == torch.bool:
        raise InputError(f"mask: got {mask.dtype} {list(mask.shape)}, want integers [H, W]")
    mask = mask.as_subclass(Tensor)
    labels = [label for label in mask.unique().tolist() if label not in (0, IGNORE)]
    if not labels:
        return ImageBoxes.empty()
    masks = torch.stack([mask == label for label in labels])
    boxes, owner, place = component_boxes(connected_components(masks))
    large = torch.bincount(place[masks], minlength=len(boxes)) >= min_pixels
    classes = torch.tensor(labels, device=mask.device).long()[owner]
    return ImageBoxes(boxes, classes, torch.ones(len(boxes), device=mask.device)).pick(large)


def corloc(
    predicted: BoxTable, truth: BoxTable, num_classes: int, iou: float = 0.5
) -> tuple[float, ...]:
    r"""Correct localisation of each class.

    With :math:`\mathcal{I}_c` the images whose truth has class :math:`c`, :math:`b_{i,c}` the box
    of the highest score that is predicted for :math:`c` in image :math:`i`, and :math:`T_{i,c}` the
    true boxes,

    .. math::
        \mathrm{CorLoc}_c = \frac{1}{|\mathcal{I}_c|} \sum_{i \in \mathcal{I}_c}
        \Bigl[ \max_{t \in T_{i,c}} \mathrm{IoU}(b_{i,c}, t) \geq \tau \Bigr]

    An image without a predicted box of the class counts as wrong; of several with the highest
    score, the first is taken.

    Args:
        predicted (mapping): Boxes of each image id; images may be missing.
        truth (mapping): True boxes of each image id.
        num_classes (int): :math:`K`.
        iou (float): :math:`\tau`. (default: :obj:`0.5`)

    Returns:
        :math:`K` values, :obj:`nan` for a class that no image has.
    """
    hits = [0] * num_classes
    images = [0] * num_classes
    for image_id, true in truth.items():
        found = predicted.get(image_id, ImageBoxes.empty())
        for label in true.classes.unique().tolist():
            images[label - 1] += 1
            best = found.pick(found.classes == label).top(1)
            overlap = box_iou(best.boxes, true.boxes[true.classes == label])
            hits[label - 1] += bool((overlap >= iou).any())
    return tuple(h / n if n else math.nan for h, n in zip(hits, images, strict=True))


def average_precision(
    predicted: BoxTable, truth: BoxTable, num_classes: int, iou: float = 0.5
) -> tuple[float, ...]:
    """Average precision of each class, by torchmetrics and pycocotools.

    The area under the precision-recall curve as COCO has it: read at 101 values of recall, at most
    100 boxes per photo and class.

    Args:
        predicted (mapping): Boxes of each image id; images may be missing.
        truth (mapping): True boxes of each image id.
        num_classes (int): :math:`K`.
        iou (float): Overlap from which a box is right. (default: :obj:`0.5`)

    Returns:
        :math:`K` values, :obj:`nan` for a class that no image has.

    Raises:
        InputError: If :obj:`torchmetrics` or :obj:`pycocotools` is missing.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision

        # Not summed over processes: who asks has all boxes.
        metric = MeanAveragePrecision(
            iou_thresholds=[iou], class_metrics=True, sync_on_compute=False
        )
    except ImportError as error:
        raise InputError(
            f"Average precision needs torchmetrics and pycocotools ({error}): "
            "pip install 'pgnn-geo[detect]'"
        ) from error
    metric.warn_on_many_detections = False
    for image_id, true in truth.items():
        found = predicted.get(image_id, ImageBoxes.empty())
        metric.update(
            [{"boxes": found.boxes, "scores": found.scores, "labels": found.classes}],
            [{"boxes": true.boxes, "labels": true.classes}],
        )
    values = [math.nan] * num_classes
    if truth:
        result = metric.compute()
        labels, found_ap = result["classes"].view(-1), result["map_per_class"].view(-1)
        for label, value in zip(labels.tolist(), found_ap.tolist(), strict=True):
            if value >= 0:  # -1 stands for a class that has no true box
                values[label - 1] = value
    return tuple(values)


def proposal_recall(
    proposals: Sequence[Tensor], truth: Sequence[Tensor], iou: float = 0.5
) -> float:
    """Share of the true boxes that some proposal of their photo overlaps by :obj:`iou` or more.

    Args:
        proposals (sequence of torch.Tensor): Boxes :obj:`[n, 4]` of each photo.
        truth (sequence of torch.Tensor): True boxes :obj:`[m, 4]` of each photo.
        iou (float): The overlap. (default: :obj:`0.5`)
    """
    hits = [
        (box_iou(true, boxes) >= iou).any(1) for boxes, true in zip(proposals, truth, strict=True)
    ]
    return torch.cat(hits).float().mean().item() if hits else math.nan


def true_boxes(
    dataset: TaggedDataset, min_pixels: int = 100, progress: Progress = no_progress
) -> dict[str, ImageBoxes]:
    """The true boxes of the photos that have masks, see :func:`boxes_of_mask`.

    Args:
        dataset (TaggedDataset): The photos and masks; its transform is not applied.
        min_pixels (int): Smaller components have no box. (default: :obj:`100`)
        progress (callable, optional): Progress display.

    Raises:
        InputError: If it has no masks.
    """
    there = [i for i in range(len(dataset)) if dataset.mask_path(i) is not None]
    if len(dataset) and not there:
        raise InputError("True boxes come from masks; open the data set with_masks=True.")
    rows = progress(there, "true boxes", len(there))
    return {dataset.image_ids[i]: boxes_of_mask(dataset.read_mask(i), min_pixels) for i in rows}


def evaluate_boxes(
    source: BoxSource, truth: BoxTable, classes: Sequence[str], iou: float = 0.5
) -> BoxScores:
    """Score the boxes of a source on the photos of which the truth is known.

    Args:
        source (BoxSource): The boxes.
        truth (mapping): From :func:`true_boxes`.
        classes (sequence of str): :math:`K` names.
        iou (float): Overlap from which a box is right. (default: :obj:`0.5`)

    Raises:
        InputError: If :obj:`torchmetrics` or :obj:`pycocotools` is missing, or the source lacks a
            photo.
    """
    predicted = {image_id: source(image_id) for image_id in truth}
    found = corloc(predicted, truth, len(classes), iou)
    precision = average_precision(predicted, truth, len(classes), iou)
    return BoxScores(tuple(classes), found, precision, len(truth))


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
