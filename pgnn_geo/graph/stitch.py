"""From the nodes of group graphs back to feature maps."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.utils import scatter

from pgnn_geo.errors import InputError
from pgnn_geo.graph.checks import describe, is_channels_last
from pgnn_geo.graph.data import GroupData
from pgnn_geo.graph.geometry import GroupGeometry, box_pixels, covered


def stitch(batch: Batch | GroupData, reduce: Literal["max", "mean"] = "max") -> Tensor:
    r"""Lays the patches of a graph back where :class:`~pgnn_geo.graph.PatchGraphBuilder` took
    them from.

    Grid cells are put side by side and the padding is cropped, so that
    :obj:`stitch(builder(features))` is :obj:`features`, exactly. The positions of a box are
    resampled bilinearly at the centres of the pixels that it covers:

    .. math::
        F_i(u) = \underset{j : u \in b_j}{\mathrm{reduce}} \; P_{i,j}\big( \tfrac{u - b_j^{min}}
        {b_j^{max} - b_j^{min}} \odot (p_w, p_h) - \tfrac{1}{2} \big)

    Pixels that no box covers take the background node, stretched over the image, or 0 without
    one. The nodes have to be in the order of the builder; :obj:`x` may have been replaced, with
    any number of channels.

    Args:
        batch (Batch or GroupData): The graphs.
        reduce (str, optional): How overlapping boxes combine, :obj:`"max"` or :obj:`"mean"`.
            (default: :obj:`"max"`)

    Shapes:
        - **batch.x:** :math:`(V, C, p_h, p_w)`
        - **output:** :math:`(B, C, h, w)`; channels last in memory, for a grid only if
          :obj:`batch.x` is

    Raises:
        InputError: If the nodes do not fit the geometry of the batch.
    """
    if reduce not in ("max", "mean"):
        raise InputError(f"`reduce`: expected 'max' or 'mean', got {reduce!r}")
    if not isinstance(batch, GroupData) or "geometry" not in batch:
        raise InputError(f"`batch`: expected graphs of PatchGraphBuilder, got {type(batch)}")
    x, b, geometry = batch.x, batch.num_images, batch.shared_geometry()
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise InputError(f"`batch.x`: expected [V, C, ph, pw], got {describe(x)}")
    if geometry.grid:
        return _join(x, b, geometry)
    return _paste(x, batch.pos, batch.image_batch, b, geometry, reduce)


def _join(x: Tensor, b: int, geometry: GroupGeometry) -> Tensor:
    s, (ph, pw), h, w = geometry.grid, geometry.cell, geometry.height, geometry.width
    nodes = s * s + geometry.background
    if x.shape[0] != b * nodes or x.shape[2:] != (ph, pw):
        raise InputError(
            f"`batch.x`: expected [{b * nodes}, C, {ph}, {pw}] for {b} images cut {s} x {s}, "
            f"got {list(x.shape)}"
        )
    c, channels_last = x.shape[1], is_channels_last(x)
    if geometry.background:
        x = x.unflatten(0, (b, nodes))[:, :-1].flatten(0, 1)
    if channels_last:
        x = x.permute(0, 2, 3, 1).reshape(b, s, s, ph, pw, c).transpose(2, 3)
        x = x.reshape(b, s * ph, s * pw, c).permute(0, 3, 1, 2)
    else:
        x = x.reshape(b, s, s, c, ph, pw).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(b, c, s * ph, s * pw)
    left, _, top, _ = geometry.padding
    x = x[:, :, top : top + h, left : left + w]
    return x.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def _paste(
    x: Tensor, pos: Tensor, image: Tensor, b: int, geometry: GroupGeometry, reduce: str
) -> Tensor:
    (v, c, ph, pw), h, w = x.shape, geometry.height, geometry.width
    if len(pos) != v or len(image) != v:
        raise InputError(f"`batch.x`: expected {len(pos)} nodes as in `batch.pos`, got {v}")
    # A background node is a box over the whole image that yields to any other box.
    node, pixel = box_pixels(pos, image, h, w)
    if geometry.background:
        last = F.pad(image[1:] != image[:-1], (0, 1), value=True)
        taken = covered(pos[~last], image[~last], b, h, w).view(-1)
        keep = ~(last[node] & taken[pixel])
        node, pixel = node[keep], pixel[keep]

    x1, y1, x2, y2 = pos.unbind(1)
    row, column = pixel.div(w, rounding_mode="floor") % h, pixel % w
    top, bottom, dy = _bilinear(row, y1[node], y2[node], ph)
    left, right, dx = _bilinear(column, x1[node], x2[node], pw)
    first = node * (ph * pw)
    corner = torch.stack(
        [
            first + top * pw + left,
            first + top * pw + right,
            first + bottom * pw + left,
            first + bottom * pw + right,
        ],
        dim=1,
    )
    weight = torch.stack([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx], dim=1)

    dtype = torch.promote_types(x.dtype, torch.float)
    table = x.to(dtype).permute(0, 2, 3, 1).reshape(v * ph * pw, c)
    # The weighted sum of four rows per pixel, without storing the four.
    value = F.embedding_bag(corner, table, mode="sum", per_sample_weights=weight.to(dtype))
    out = scatter(value, pixel, dim=0, dim_size=b * h * w, reduce=reduce)
    return out.to(x.dtype).view(b, h, w, c).permute(0, 3, 1, 2)


def _bilinear(index: Tensor, low: Tensor, high: Tensor, p: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two of p positions between low and high around a pixel, and the second one's weight."""
    at = ((index + 0.5 - low) / (high - low) * p - 0.5).clamp(0, p - 1)
    before = at.floor()
    return before.long(), (before.long() + 1).clamp(max=p - 1), at - before
