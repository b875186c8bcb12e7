"""Features of a whole data set, computed once and kept on disk."""

from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.device import ResidentFeatures, resident
from pgnn_geo.features.frozen import FrozenFeatureConfig, frozen_features
from pgnn_geo.features.stems import stem_bank, stem_batches
from pgnn_geo.features.views import Progress, View, no_progress, photo_batches
from pgnn_geo.features.whitening import WhitenedFeatures, Whitening

__all__ = [
    "FeatureBank",
    "FrozenFeatureConfig",
    "Progress",
    "ResidentFeatures",
    "View",
    "WhitenedFeatures",
    "Whitening",
    "frozen_features",
    "no_progress",
    "photo_batches",
    "resident",
    "stem_bank",
    "stem_batches",
]
