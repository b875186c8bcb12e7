"""Training with Lightning: stage 1, stage 2, callbacks."""

from pgnn_geo.training.attention import (
    AttentionModule,
    AttentionTrainingConfig,
    train_attention,
)
from pgnn_geo.training.mutual import MutualComplement
from pgnn_geo.training.segmentation import (
    SegmentationData,
    SegmentationModule,
    segmentation_loss,
    train_segmentation,
)
from pgnn_geo.training.segmentation_config import RECIPES, SegmentationTrainingConfig
from pgnn_geo.training.stems import StemDataset, group_loader

__all__ = [
    "RECIPES",
    "AttentionModule",
    "AttentionTrainingConfig",
    "MutualComplement",
    "SegmentationData",
    "SegmentationModule",
    "SegmentationTrainingConfig",
    "StemDataset",
    "group_loader",
    "segmentation_loss",
    "train_attention",
    "train_segmentation",
]
