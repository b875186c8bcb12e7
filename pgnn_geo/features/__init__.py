"""Features of a whole data set, computed once and kept on disk."""

from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.stems import (
    Progress,
    View,
    no_progress,
    photo_batches,
    stem_bank,
    stem_batches,
)
from pgnn_geo.features.whitening import WhitenedFeatures

__all__ = [
    "FeatureBank",
    "Progress",
    "View",
    "WhitenedFeatures",
    "no_progress",
    "photo_batches",
    "stem_bank",
    "stem_batches",
]
