"""From feature maps to a batch of group graphs."""

from collections.abc import Sequence

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
from pgnn_geo.graph.data import GroupData
from pgnn_geo.graph.edges import complete_edge_index
from pgnn_geo.graph.geometry import GroupGeometry, box_pixels


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
    asked for.

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
        group: Tensor | int | None = None,
        node_class: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        box_class: Sequence[Tensor] | None = None,
        edges: bool = False,
        as_edge_index: bool = False,
    ) -> Batch:
        r"""Builds the graphs.

        With a grid, nothing waits for the device, unless :obj:`group` is a tensor on a GPU.

        Args:
            features (torch.Tensor): The feature maps. Gradients flow through them; a
                channels-last map gives channels-last patches.
            group (torch.Tensor or int, optional): The group of each image, sorted, on the CPU or
                beside the features, or the number of images in every group. Numbers may be left
                out. (default: all images in one group)
            node_class (torch.Tensor, optional): With :obj:`grid`, the class of each cell. The
                background node has class 0. (default: all 0)
            boxes (list of torch.Tensor, optional): With :obj:`box_size`, the boxes of each image
                in feature pixels, xyxy. An image may have none. (default: :obj:`None`)
            box_class (list of torch.Tensor, optional): The class of each box. (default: all 0)
            edges (bool, optional): Whether to write the edges. The fused path of
                :class:`~pgnn_geo.nn.ComplementaryConv` needs none. (default: :obj:`False`)
            as_edge_index (bool, optional): With :obj:`edges`, write them as a sorted
                :class:`~torch_geometric.EdgeIndex`. (default: :obj:`False`)

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
        images = checks.images_per_group(group, features)
        _, _, h, w = features.shape
        geometry = GroupGeometry(0, h, w, self.grid or 0, self.background)
        nodes: Tensor | int
        if self.grid is not None:
            checks.absent(boxes=boxes, box_class=box_class, because="`grid` is set")
            x, pos, node_class, nodes = self._cells(features, node_class, geometry)
        else:
            checks.absent(node_class=node_class, because="`box_size` is set; give `box_class`")
            box, label, counts = checks.boxes(boxes, box_class, features)
            x, pos, node_class, nodes = self._boxes(features, box, label, counts)
        return _batch(x, pos, node_class, nodes, images, geometry, edges, as_edge_index)

    def _cells(
        self, features: Tensor, node_class: Tensor | None, geometry: GroupGeometry
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        b, s, (ph, pw) = len(features), geometry.grid, geometry.cell
        label = checks.node_class(node_class, b, s, features.device)
        padded = features
        left, _, top, _ = padding = geometry.padding
        if any(padding):
            padded = F.pad(features, padding, mode="replicate")
        x = _split(padded, s).unflatten(0, (b, s * s))
        xs = (torch.arange(s + 1.0) * pw - left).clamp(0, geometry.width)
        ys = (torch.arange(s + 1.0) * ph - top).clamp(0, geometry.height)
        y1, x1 = torch.meshgrid(ys[:-1], xs[:-1], indexing="ij")
        y2, x2 = torch.meshgrid(ys[1:], xs[1:], indexing="ij")
        pos = torch.stack([x1, y1, x2, y2], dim=-1).view(-1, 4)
        if self.background:
            x = torch.cat([x, F.adaptive_avg_pool2d(features, (ph, pw)).unsqueeze(1)], dim=1)
            pos = torch.cat([pos, _whole(geometry.height, geometry.width)])
            label = F.pad(label, (0, 1))
        pos = pos.to(features.device, non_blocking=True)
        return x.flatten(0, 1), pos.repeat(b, 1), label.flatten(), len(pos)

    def _boxes(
        self, features: Tensor, box: Tensor, label: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        b, _, h, w = features.shape
        assert self.box_size is not None
        p, device = self.box_size, features.device
        image = torch.arange(b).repeat_interleave(counts)
        image_on_device = image.to(device, non_blocking=True)
        # RoIAlign knows no bfloat16 on the CPU, and half precision loses the sampling positions.
        low = features.dtype in (torch.bfloat16, torch.half)
        source = features.float() if low else features
        rois = torch.cat([image_on_device.unsqueeze(1), box], dim=1).to(source.dtype)
        x = roi_align(source, rois, p, aligned=True)
        if not self.background:
            return x.to(features.dtype), box, label, counts
        _, pixel = box_pixels(box, image_on_device, h, w)
        uncovered = torch.ones(b, h, w, device=device, dtype=torch.bool)
        uncovered.view(-1)[pixel] = False
        x = torch.cat([x, _masked_average(source, uncovered, p)]).to(features.dtype)
        pos = torch.cat([box, _whole(h, w).to(device).expand(b, 4)])
        label = torch.cat([label, label.new_zeros(b)])
        # Sorts the background nodes in behind the boxes of their images.
        order = torch.cat([image, torch.arange(b)]).argsort(stable=True).to(device)
        return x[order], pos[order], label[order], counts + 1

    def __repr__(self) -> str:
        kind = f"box_size={self.box_size}" if self.grid is None else f"grid={self.grid}"
        return f"{self.__class__.__name__}({kind}, background={self.background})"


def _split(features: Tensor, s: int) -> Tensor:
    """[B, C, S * ph, S * pw] -> [B * S * S, C, ph, pw] by one copy, in the same memory format."""
    b, c, h, w = features.shape
    ph, pw = h // s, w // s
    if checks.is_channels_last(features):
        x = features.permute(0, 2, 3, 1).view(b, s, ph, s, pw, c).transpose(2, 3)
        return x.reshape(-1, ph, pw, c).permute(0, 3, 1, 2)
    x = features.reshape(b, c, s, ph, s, pw).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, c, ph, pw)


def _whole(h: int, w: int) -> Tensor:
    return torch.tensor([[0.0, 0.0, w, h]])


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
    nodes: Tensor | int,
    images: Tensor,
    geometry: GroupGeometry,
    edges: bool,
    as_edge_index: bool,
) -> Batch:
    """What `Batch.from_data_list` would make of the groups, without making the groups.

    `nodes` counts the nodes of each image, `images` the images of each group, on the host.
    """
    num_groups, num_images, device = len(images), int(images.sum()), x.device
    image_slices = cumsum(images)
    group = torch.arange(num_groups).repeat_interleave(images, output_size=num_images)
    if isinstance(nodes, int):
        node_slices = image_slices * nodes
        image_batch = _repeat(torch.arange(num_images, device=device), nodes)
        batch_vector = _repeat(group.to(device, non_blocking=True), nodes)
    else:
        node_slices = cumsum(nodes)[image_slices]
        image_batch = torch.arange(num_images).repeat_interleave(nodes).to(device)
        batch_vector = group.repeat_interleave(nodes).to(device)

    batch = Batch(_base_cls=GroupData)
    slices: dict[str, Tensor] = {}
    incs: dict[str, Tensor | None] = {}

    # In the order in which PyG keeps them.
    def add(key: str, value: Tensor, key_slices: Tensor, increments: Tensor | None = None) -> None:
        batch[key], slices[key] = value, key_slices
        incs[key] = torch.zeros_like(images) if increments is None else increments

    add("x", x, node_slices)
    if edges:
        edge_index = complete_edge_index(node_slices, as_edge_index=as_edge_index, device=device)
        sizes = node_slices.diff()
        if isinstance(edge_index, EdgeIndex):
            edge_index._cat_metadata = _metadata(node_slices)
        add("edge_index", edge_index, cumsum(sizes * sizes), node_slices[:-1])
    add("pos", pos, node_slices)
    add("node_class", node_class, node_slices)
    add("image_batch", image_batch, node_slices, image_slices[:-1])
    counts = images.tolist()
    # One object for each distinct number of images.
    kinds = {
        n: GroupGeometry(n, geometry.height, geometry.width, geometry.grid, geometry.background)
        for n in set(counts)
    }
    batch.geometry = [kinds[n] for n in counts]
    slices["geometry"], incs["geometry"] = torch.arange(num_groups + 1), None
    batch.batch = batch_vector
    batch.ptr = node_slices.to(device, non_blocking=True)
    batch._num_graphs = num_groups
    batch._slice_dict, batch._inc_dict = slices, incs
    return batch


def _repeat(values: Tensor, n: int) -> Tensor:
    return values.unsqueeze(1).expand(-1, n).reshape(-1)


def _metadata(node_slices: Tensor) -> CatMetadata:
    """How PyG gives each group its own `EdgeIndex` back."""
    counts, ends = node_slices.diff().tolist(), node_slices[1:].tolist()
    return CatMetadata(
        nnz=[n * n for n in counts],
        # PyG moves the size along with the indices when it batches and separates.
        sparse_size=[(end, end) for end in ends],
        sort_order=[SortOrder.COL] * len(counts),
        is_undirected=[True] * len(counts),
    )
