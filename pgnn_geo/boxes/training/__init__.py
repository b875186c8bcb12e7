"""Training of detectors and adjusters of boxes with Lightning."""

from pgnn_geo.boxes.training.adjuster import AdjusterTrainingConfig, train_adjuster
from pgnn_geo.boxes.training.detector import (
    DetectorModule,
    DetectorTrainingConfig,
    train_detector,
)

__all__ = [
    "AdjusterTrainingConfig",
    "DetectorModule",
    "DetectorTrainingConfig",
    "train_adjuster",
    "train_detector",
]
