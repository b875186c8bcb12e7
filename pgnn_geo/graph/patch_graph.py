"""Patches as a transform of PyG."""

from typing import Any

from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from pgnn_geo.errors import InputError
from pgnn_geo.graph.builder import PatchGraphBuilder
from pgnn_geo.graph.data import GroupData


@functional_transform("patch_graph")
class PatchGraph(BaseTransform):
    r"""Cuts the feature maps :obj:`data.x` of one group of images into patches, the nodes of a
    complete graph (functional name: :obj:`patch_graph`).

    It is :class:`~pgnn_geo.graph.PatchGraphBuilder` on one group, with :obj:`data.x` as its
    :obj:`features` and, where they are given, :obj:`data.node_class`, :obj:`data.boxes` and
    :obj:`data.box_class`. What else :obj:`data` holds stays as it is. A
    :class:`~torch_geometric.loader.DataLoader` batches the results, and
    :func:`~pgnn_geo.graph.stitch` lays them back.

    .. code-block:: python

        import torch_geometric.transforms as T

        # Each edge with the offset between the boxes of its two patches.
        transform = T.Compose([PatchGraph(grid=4), T.Cartesian(norm=False)])
        data = transform(Data(x=torch.randn(3, 512, 32, 32)))  # 48 nodes, 2304 edges

    Args:
        grid, box_size, background: See :class:`~pgnn_geo.graph.PatchGraphBuilder`.
        edges (bool, optional): Whether to write :obj:`edge_index`, which other transforms ask for.
            (default: :obj:`True`)

    Shapes:
        - **input:** :obj:`x` :math:`(B, C, h, w)`
        - **output:** :class:`~pgnn_geo.graph.GroupData`, :obj:`x` :math:`(V, C, p_h, p_w)`

    Raises:
        InputError: If a field does not fit, or :obj:`data` is a graph already.
    """

    def __init__(
        self,
        grid: int | None = None,
        box_size: int | None = None,
        background: bool = False,
        edges: bool = True,
    ) -> None:
        self.builder = PatchGraphBuilder(grid, box_size, background)
        self.edges = edges

    def forward(self, data: Data) -> GroupData:
        """Makes the graph of a shallow copy of the data."""
        fields: dict[str, Any] = data.to_dict()
        named = {key: fields.pop(key, None) for key in ("node_class", "boxes", "box_class")}
        (out,) = self.builder(fields.pop("x", None), edges=self.edges, **named).to_data_list()
        nodes = {*out.keys(), "num_nodes", "batch", "edge_index", "edge_attr"}
        if taken := sorted(nodes & fields.keys()):
            raise InputError(f"`data`: expected images without a graph, got also {taken}")
        return out.update(fields)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({repr(self.builder).split('(', 1)[1]}"
