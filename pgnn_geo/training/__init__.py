"""Training with Lightning: stage 1, precision, callbacks."""

from pgnn_geo.training.attention import (
    AttentionModule,
    AttentionTrainingConfig,
    StemDataset,
    group_loader,
    train_attention,
)
from pgnn_geo.training.precision import has_fast_bfloat16, resolve_precision

__all__ = [
    "AttentionModule",
    "AttentionTrainingConfig",
    "StemDataset",
    "group_loader",
    "has_fast_bfloat16",
    "resolve_precision",
    "train_attention",
]
