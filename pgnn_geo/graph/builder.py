"""From feature maps to a batch of group graphs."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch
from torch_geometric.edge_index import CatMetadata, SortOrder
from torch_geometric.utils import cumsum
from torchvision.ops import roi_align

from pgnn_geo.errors import InputError
from pgnn_geo.graph import checks
from pgnn_geo.graph.data import new_batch
from pgnn_geo.graph.edges import complete_edge_index
from pgnn_geo.graph.geometry import GroupGeometry, covered


class PatchGraphBuilder:
    r"""Cuts feature maps into patches, the nodes of one complete graph per group of images, as in
    `"Maximize the Exploration of Congeneric Semantics for Weakly Supervised Semantic
    Segmentation" <https://arxiv.org/abs/2110.03982>`_.

    .. math::
        \mathcal{V}_g = \bigcup_{i \in g} \{ P_{i,1}, \ldots, P_{i,n_i} \} \; (\cup \; \{ U_i \})

    With :obj:`grid`, :math:`P_{i,j}` are the :math:`S \times S` cells of the map, row by row. A
    map that :math:`S` does not divide is padded by repeating its border, evenly on both sides;
    :func:`~pgnn_geo.graph.stitch` crops it again. With :obj:`box_size`, they are the boxes of the
    image, by RoIAlign (:obj:`aligned=True`, adaptive sampling).

    The background node :math:`U_i` comes last among the nodes of its image: the average of what no
    box covers in each cell of a :math:`p_h \times p_w` grid over the image. A box covers each pixel
    that it overlaps. A cell without uncovered pixels takes the average of all uncovered ones. A
    fully covered image (always so with :obj:`grid`) counts as uncovered, so that its background
    node is the average pooling of the whole image.

    Only shapes, devices and boxes are checked, and classes on the CPU, since reading values off a
    GPU would wait for it. Looking for NaN in the features reads all of them, so it has to be
    asked for. It compiles and exports without a graph break, see :ref:`compilation`.

    Args:
        grid (int, optional): Cells per side, :math:`S`. (default: :obj:`None`)
        box_size (int, optional): Positions per side of a box's patch, :math:`p`. Give either this
            or :obj:`grid`. (default: :obj:`None`)
        background (bool, optional): Whether each image has a background node.
            (default: :obj:`False`)
        check_finite (bool, optional): Whether features with NaN or infinity are refused.
            (default: :obj:`False`)

    Raises:
        InputError: If not exactly one of :obj:`grid` and :obj:`box_size` is a positive integer.
    """

    def __init__(
        self,
        grid: int | None = None,
        box_size: int | None = None,
        background: bool = False,
        check_finite: bool = False,
    ) -> None:
        if (grid is None) == (box_size is None):
            raise InputError(
                f"expected one of `grid` and `box_size`, got grid={grid}, box_size={box_size}"
            )
        for name, value in (("grid", grid), ("box_size", box_size)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"`{name}`: expected a positive integer, got {value!r}")
        self.grid = grid
        self.box_size = box_size
        self.background = background
        self.check_finite = check_finite

    def __call__(
        self,
        features: Tensor,
        group: Tensor | None = None,
        node_class: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        box_class: Sequence[Tensor] | None = None,
        edges: bool = False,
        as_edge_index: bool = False,
        images_per_group: int | None = None,
    ) -> Batch:
        r"""Builds the graphs.

        With a grid, nothing waits for the device, unless :obj:`group` is a tensor on a GPU.

        Args:
            features (torch.Tensor): The feature maps. Gradients flow through them; a
                channels-last map gives channels-last patches.
            group (torch.Tensor, optional): The group of each image, sorted. Numbers may be left
                out. (default: all images in one group)
            node_class (torch.Tensor, optional): With :obj:`grid`, the class of each cell. The
                background node has class 0. (default: all 0)
            boxes (list of torch.Tensor, optional): With :obj:`box_size`, the boxes of each image
                in feature pixels, xyxy. An image may have none. (default: :obj:`None`)
            box_class (list of torch.Tensor, optional): The class of each box. (default: all 0)
            edges (bool, optional): Whether to write the edges. The fused path of
                :class:`~pgnn_geo.nn.ComplementaryConv` needs none. (default: :obj:`False`)
            as_edge_index (bool, optional): Whether to write the edges as a sorted
                :class:`~torch_geometric.EdgeIndex`. Who asks for their form asks for them:
                it implies :obj:`edges`. (default: :obj:`False`)
            images_per_group (int, optional): In place of :obj:`group`, the number of images in
                every group. (default: :obj:`None`)

        Shapes:
            - **features:** :math:`(B, C, h, w)`
            - **group:** :math:`(B)`
            - **node_class:** :math:`(B S^2)` or :math:`(B, S, S)`
            - **boxes:** :math:`B` tensors :math:`(k_i, 4)`
            - **box_class:** :math:`B` tensors :math:`(k_i)`
            - **output:** :class:`~torch_geometric.data.Batch` of
              :class:`~pgnn_geo.graph.GroupData`, :obj:`x` :math:`(V, C, p_h, p_w)`

        Raises:
            InputError: If an argument does not fit; names it.
        """
        checks.features(features, self.check_finite)
        images = checks.images(group, images_per_group, features)
        h, w = features.shape[2:]
        geometry = GroupGeometry(0, h, w, self.grid or 0, self.background)
        nodes: int | list[int]  # in each image
        if self.box_size is None:
            checks.absent(boxes=boxes, box_class=box_class, because="`grid` is set")
            label = checks.node_class(node_class, features, geometry.grid)
            label = F.pad(label, (0, int(self.background))).flatten()
            x, pos = _cells(features, geometry)
            nodes = geometry.grid**2 + self.background
        else:
            checks.absent(node_class=node_class, because="`box_size` is set; give `box_class`")
            box, label, counts = checks.boxes(boxes, box_class, features)
            x, pos, label = _regions(features, self.box_size, self.background, box, label, counts)
            nodes = [k + self.background for k in counts]
        return _batch(x, pos, label, nodes, images, geometry, edges, as_edge_index)

    def __repr__(self) -> str:
        kind = f"box_size={self.box_size}" if self.grid is None else f"grid={self.grid}"
        return f"{self.__class__.__name__}({kind}, background={self.background})"


def _cells(features: Tensor, geometry: GroupGeometry) -> tuple[Tensor, Tensor]:
    """Patches [V, C, ph, pw] of the grid, background nodes among them, and their places."""
    b, h, w = features.size(0), geometry.height, geometry.width
    s, (ph, pw), (left, right, top, bottom) = geometry.grid, geometry.cell, geometry.padding
    x = features
    if left + right + top + bottom:
        x = F.pad(x, (left, right, top, bottom), mode="replicate")
    x = _split(x, s)
    xs = (torch.arange(s + 1.0) * pw - left).clamp(0, w)
    ys = (torch.arange(s + 1.0) * ph - top).clamp(0, h)
    y1, x1 = torch.meshgrid(ys[:-1], xs[:-1], indexing="ij")
    y2, x2 = torch.meshgrid(ys[1:], xs[1:], indexing="ij")
    pos = torch.stack([x1, y1, x2, y2], dim=-1).view(-1, 4)
    if geometry.background:
        pooled = F.adaptive_avg_pool2d(features, (ph, pw)).unsqueeze(1)
        x = torch.cat([x.unflatten(0, (b, s * s)), pooled], dim=1).flatten(0, 1)
        pos = torch.cat([pos, torch.tensor([[0.0, 0.0, w, h]])])
    return x, pos.to(features.device, non_blocking=True).repeat(b, 1)


def _split(features: Tensor, s: int) -> Tensor:
    """[B, C, S * ph, S * pw] -> [B * S * S, C, ph, pw] by one copy, in the same memory format."""
    b, c, h, w = features.shape
    ph, pw = h // s, w // s
    if checks.is_channels_last(features):
        x = features.permute(0, 2, 3, 1).view(b, s, ph, s, pw, c).transpose(2, 3)
        return x.reshape(-1, ph, pw, c).permute(0, 3, 1, 2)
    x = features.reshape(b, c, s, ph, s, pw).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, c, ph, pw)


def _regions(
    features: Tensor, p: int, background: bool, box: Tensor, label: Tensor, counts: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Patches [V, C, p, p] of boxes, background nodes among them, their places and classes."""
    (b, _, h, w), device = features.shape, features.device
    image = _ids(counts, device)
    # RoIAlign knows no bfloat16 on the CPU, and half precision loses the sampling positions.
    low = features.dtype in (torch.bfloat16, torch.half)
    source = features.float() if low else features
    rois = torch.cat([image.unsqueeze(1), box], dim=1).to(source.dtype)
    x = roi_align(source, rois, (p, p), aligned=True)
    if background:
        x = torch.cat([x, _masked_average(source, ~covered(box, image, b, h, w), p)])
        box = torch.cat([box, box.new_tensor([0, 0, w, h]).expand(b, 4)])
        label = F.pad(label, (0, b))
        # Sorts the background nodes in behind the boxes of their images.
        order = torch.cat([image, torch.arange(b, device=device)]).argsort(stable=True)
        x, box, label = x[order], box[order], label[order]
    return x.to(features.dtype), box, label


def _masked_average(features: Tensor, mask: Tensor, p: int) -> Tensor:
    """Averages the pixels in the mask [B, h, w] in each of p x p cells -> [B, C, p, p]."""
    b, c, h, w = features.shape
    mask = (mask | ~mask.any(dim=(1, 2), keepdim=True)).to(features.dtype)
    rows, columns = (_cells_of(n, p, mask) for n in (h, w))
    # One product reads the features once and stores nothing of their size.
    weight = torch.einsum("bhw,ih,jw->bhwij", mask, rows, columns).reshape(b, h * w, -1)
    weight = torch.where(weight.any(1, keepdim=True), weight, mask.view(b, h * w, 1))
    x = features.flatten(2) @ (weight / weight.sum(1, keepdim=True))
    return x.view(b, c, p, p)


def _cells_of(n: int, p: int, like: Tensor) -> Tensor:
    """Which of n positions each of p cells averages, as adaptive average pooling has it: [p, n]."""
    i, cell = torch.arange(n, device=like.device), torch.arange(p, device=like.device).unsqueeze(1)
    return ((i >= cell * n // p) & (i * p < (cell + 1) * n)).to(like.dtype)


def _batch(
    x: Tensor,
    pos: Tensor,
    node_class: Tensor,
    nodes: int | list[int],
    images: list[int],
    geometry: GroupGeometry,
    edges: bool,
    as_edge_index: bool,
) -> Batch:
    """What `Batch.from_data_list` would make of the groups, without making the groups.

    `nodes` counts the nodes of each image, `images` the images of each group: integers of Python,
    which a compiler knows, while reading a tensor's would end its graph.
    """
    device, image_ptr = x.device, [0, *accumulate(images)]
    if isinstance(nodes, int):
        ptr = [nodes * i for i in image_ptr]
        image_batch = _repeat(image_ptr[-1], nodes, device)
    else:
        node_ptr = [0, *accumulate(nodes)]
        ptr = [node_ptr[i] for i in image_ptr]
        image_batch = _ids(nodes, device)
    sizes = [end - start for start, end in pairwise(ptr)]
    node_slices, zeros = torch.tensor(ptr), torch.zeros(len(images), dtype=torch.long)
    batch = new_batch()
    slices: dict[str, Tensor] = {}
    incs: dict[str, Tensor | None] = {}

    # In the order in which PyG keeps them.
    def add(key: str, value: Any, key_slices: Tensor, increments: Tensor | None) -> None:
        batch[key], slices[key], incs[key] = value, key_slices, increments

    add("x", x, node_slices, zeros)
    if edges or as_edge_index:
        edge_index = complete_edge_index(ptr, as_edge_index=as_edge_index, device=device)
        if isinstance(edge_index, EdgeIndex):
            edge_index._cat_metadata = _metadata(sizes)
        add("edge_index", edge_index, cumsum(node_slices.diff() ** 2), node_slices[:-1])
    add("pos", pos, node_slices, zeros)
    add("node_class", node_class, node_slices, zeros)
    add("image_batch", image_batch, node_slices, torch.tensor(image_ptr[:-1]))
    geometries = [replace(geometry, num_images=n) for n in images]
    add("geometry", geometries, torch.arange(len(images) + 1), None)
    batch.batch = _ids(sizes, device)
    batch.ptr = torch.tensor(ptr).to(device, non_blocking=True)
    batch._num_graphs, batch._max_num_nodes = len(images), max(sizes)
    batch._slice_dict, batch._inc_dict = slices, incs
    return batch


def _metadata(sizes: list[int]) -> CatMetadata:
    """How PyG gives each group its own `EdgeIndex` back."""
    return CatMetadata(
        nnz=[n * n for n in sizes],
        # PyG moves the size along with the indices when it batches and separates.
        sparse_size=[(end, end) for end in accumulate(sizes)],
        sort_order=[SortOrder.COL] * len(sizes),
        is_undirected=[True] * len(sizes),
    )


def _ids(counts: list[int], device: torch.device) -> Tensor:
    """Each position in the list as often as its count says: [0, 0, 0, 1, 2, 2, ...]."""
    if counts == counts[:1] * len(counts):
        return _repeat(len(counts), counts[0], device)
    ids = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts), output_size=sum(counts))
    return ids.to(device, non_blocking=True)


def _repeat(n: int, times: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device).unsqueeze(1).expand(-1, times).reshape(-1)
