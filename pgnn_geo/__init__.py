"""P-GNN on PyTorch Geometric: weakly supervised semantic segmentation with patch graphs."""

import warnings as _warnings
from importlib.metadata import version as _version

with _warnings.catch_warnings():  # a note to PyG's developers that newer torch versions print
    _warnings.filterwarnings("ignore", ".*torch.jit.script.*", FutureWarning)
    import torch_geometric  # noqa: F401

from pgnn_geo.errors import InputError
from pgnn_geo.graph import GroupData, PatchGraphBuilder, complete_edge_index, stitch
from pgnn_geo.inference import Segmenter
from pgnn_geo.labels import AttentionStore, mutual_complement
from pgnn_geo.losses import SoftComplementaryLoss
from pgnn_geo.nn import (
    PGNN,
    AttentionDecoder,
    ClassEmbedding,
    ClassPrototypes,
    ComplementaryBlock,
    ComplementaryConv,
    CongenericPropagation,
)

__version__ = _version("pgnn-geo")

__all__ = [
    "PGNN",
    "AttentionDecoder",
    "AttentionStore",
    "ClassEmbedding",
    "ClassPrototypes",
    "ComplementaryBlock",
    "ComplementaryConv",
    "CongenericPropagation",
    "GroupData",
    "InputError",
    "PatchGraphBuilder",
    "Segmenter",
    "SoftComplementaryLoss",
    "complete_edge_index",
    "mutual_complement",
    "stitch",
]
