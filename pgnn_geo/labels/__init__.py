"""From attention maps to pseudo-labels."""

from pgnn_geo.labels.attention_store import AttentionStore
from pgnn_geo.labels.certainty import certain_labels
from pgnn_geo.labels.maps import MapConfig, attention_maps
from pgnn_geo.labels.mutual import mutual_complement
from pgnn_geo.labels.refine import (
    REFINEMENTS,
    DenseCRF,
    PixelAdaptiveRefinement,
    Refinement,
    build_refinement,
)
from pgnn_geo.labels.seeds import background_score, refined_labels, seed_labels

__all__ = [
    "REFINEMENTS",
    "AttentionStore",
    "DenseCRF",
    "MapConfig",
    "PixelAdaptiveRefinement",
    "Refinement",
    "attention_maps",
    "background_score",
    "build_refinement",
    "certain_labels",
    "mutual_complement",
    "refined_labels",
    "seed_labels",
]
