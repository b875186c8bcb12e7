"""Group graphs: patches of feature maps as nodes, complete graphs over groups, and back."""

from pgnn_geo.graph.builder import PatchGraphBuilder
from pgnn_geo.graph.data import GroupData
from pgnn_geo.graph.edges import complete_edge_index
from pgnn_geo.graph.geometry import GroupGeometry
from pgnn_geo.graph.stitch import stitch

__all__ = ["GroupData", "GroupGeometry", "PatchGraphBuilder", "complete_edge_index", "stitch"]
