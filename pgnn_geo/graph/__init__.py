"""Group graphs: patches of feature maps as nodes, complete graphs over groups, and back."""

from pgnn_geo.graph.builder import PatchGraphBuilder
from pgnn_geo.graph.data import SAFE_GLOBALS, GroupData
from pgnn_geo.graph.edges import complete_edge_index
from pgnn_geo.graph.geometry import GroupGeometry
from pgnn_geo.graph.patch_graph import PatchGraph
from pgnn_geo.graph.stitch import stitch

__all__ = [
    "SAFE_GLOBALS",
    "GroupData",
    "GroupGeometry",
    "PatchGraph",
    "PatchGraphBuilder",
    "complete_edge_index",
    "stitch",
]
