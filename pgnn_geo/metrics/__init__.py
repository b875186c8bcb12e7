"""Scores of label images."""

from pgnn_geo.metrics.breakdown import ErrorBreakdown, ErrorShares
from pgnn_geo.metrics.segmentation import BackgroundSweep, ConfusionMatrix, SegmentationScores

__all__ = [
    "BackgroundSweep",
    "ConfusionMatrix",
    "ErrorBreakdown",
    "ErrorShares",
    "SegmentationScores",
]
