"""Scores of label images."""

from pgnn_geo.metrics.segmentation import BackgroundSweep, ConfusionMatrix, SegmentationScores

__all__ = ["BackgroundSweep", "ConfusionMatrix", "SegmentationScores"]
