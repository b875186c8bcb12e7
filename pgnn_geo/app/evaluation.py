"""Scores of label images on disk."""

from pathlib import Path

import torch

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.features import Progress, no_progress
from pgnn_geo.io.masks import load_mask
from pgnn_geo.metrics import ConfusionMatrix, SegmentationScores


def evaluate(
    labels: Path, truth: TaggedDataset, progress: Progress = no_progress
) -> SegmentationScores:
    """Score a folder of label images against the masks of a data set.

    Args:
        labels (Path): The folder of :obj:`ID.png`.
        truth (TaggedDataset): The photos, with masks.
        progress (callable, optional): Progress display.

    Raises:
        InputError: If a label image is missing, damaged or of another size than its mask.
    """
    matrix = ConfusionMatrix(len(truth.classes), truth.classes)
    for index in progress(range(len(truth)), "evaluate", len(truth)):
        item = truth[index]
        predicted = load_mask(labels / f"{item['image_id']}.png")
        matrix.update(predicted, item["mask"].as_subclass(torch.Tensor), item["image_id"])
    return matrix.compute()
