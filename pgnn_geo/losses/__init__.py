"""Losses of the attention network."""

from pgnn_geo.losses.classification import classification_loss
from pgnn_geo.losses.seeding import SeedingLoss
from pgnn_geo.losses.soft_complementary import (
    SoftComplementaryLoss,
    SoftComplementaryTerms,
    frozen,
)

__all__ = [
    "SeedingLoss",
    "SoftComplementaryLoss",
    "SoftComplementaryTerms",
    "classification_loss",
    "frozen",
]
