"""Scores of label images on disk."""

from pathlib import Path

import torch

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.features import Progress, no_progress
from pgnn_geo.io.masks import load_mask
from pgnn_geo.metrics import ConfusionMatrix, ErrorBreakdown, SegmentationScores
from pgnn_geo.ranks import ALONE, Ranks


def evaluate(
    labels: Path,
    truth: TaggedDataset,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
    errors: ErrorBreakdown | None = None,
) -> SegmentationScores:
    """Score a folder of label images against the masks of a data set.

    Args:
        labels (Path): The folder of :obj:`ID.png`.
        truth (TaggedDataset): The photos, with masks.
        progress (callable, optional): Progress display.
        ranks (Ranks): The processes that share the photos; what they count is added up.
            (default: this one alone)
        errors (ErrorBreakdown, optional): Counts the errors by their kind as well.

    Raises:
        InputError: If a label image is missing, damaged or of another size than its mask.
    """
    matrix = ConfusionMatrix(len(truth.classes), truth.classes)
    own = None
    if errors is not None:
        own = ErrorBreakdown(len(truth.classes), truth.classes, errors.width)
    photos = ranks.share(range(len(truth)))
    for index in progress(photos, "evaluate", len(photos)):
        item = truth[index]
        predicted = load_mask(labels / f"{item['image_id']}.png", truth.max_pixels)
        mask = item["mask"].as_subclass(torch.Tensor)
        matrix.update(predicted, mask, item["image_id"])
        if own is not None:
            own.update(predicted, mask, item["image_id"])
    total = ConfusionMatrix(len(truth.classes), truth.classes)
    for part, kinds in ranks.gather((matrix, own)):
        total.merge(part)
        if errors is not None and kinds is not None:
            errors.merge(kinds)
    return total.compute()
