"""Features of whole data sets, computed once and kept on disk."""

from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.frozen import FrozenFeatureConfig, frozen_features
from pgnn_geo.features.views import Progress, View, no_progress, photo_batches

__all__ = [
    "FeatureBank",
    "FrozenFeatureConfig",
    "Progress",
    "View",
    "frozen_features",
    "no_progress",
    "photo_batches",
]
