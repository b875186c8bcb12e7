"""Checks of what callers hand to a layer: one message that names the argument.

Ranks, sizes, types and devices; values only where that takes no wait for a device.
"""

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.utils import is_sparse

from pgnn_geo.errors import InputError, expect
from pgnn_geo.graph.checks import describe


def nodes(name: str, x: Any, linear: Linear, node_class: Any = None) -> None:
    """Nodes [V, C, *] that `linear` maps, and their classes [V], if they are given."""
    C, device = linear.in_channels if linear.in_channels > 0 else "C", linear.weight.device
    if not isinstance(x, Tensor) or x.dim() < 2 or C not in ("C", x.size(1)):
        raise InputError(f"`{name}`: expected [V, {C}, *], got {describe(x)}")
    if x.device != device or not x.is_floating_point() or 0 in x.shape[1:]:
        raise InputError(
            f"`{name}`: expected floating-point features on {device} with at least one channel "
            f"and position, got {describe(x)}"
        )
    if node_class is not None:
        classes(node_class, x)


def classes(node_class: Any, x: Tensor) -> None:
    """Classes [V] of nodes [V, C, *]."""
    if (
        not isinstance(node_class, Tensor)
        or node_class.shape != x.shape[:1]
        or node_class.dtype not in (torch.long, torch.int)
        or node_class.device != x.device
    ):
        expected = f"integers [{x.size(0)}] on {x.device}, one class per node"
        raise InputError(f"`node_class`: expected {expected}, got {describe(node_class)}")


def class_range(node_class: Tensor, num_classes: int) -> None:
    """Classes in 0, ..., K; looked at on the CPU only."""
    if node_class.is_cpu and node_class.numel() and not torch.compiler.is_compiling():
        low, high = (int(v) for v in node_class.aminmax())
        fits = 0 <= low and high <= num_classes
        expect(fits, "node_class", f"0 (background) to {num_classes}", f"{low} to {high}")


def edges(edge_index: Any, edge_attr: Any, linear: Linear | None, device: torch.device) -> None:
    """Edges [2, E] on `device`, and their features [E, D] or [E] that `linear` maps, if any."""
    if is_sparse(edge_index):  # checked by PyG; may carry the edge features itself
        return
    if (
        not isinstance(edge_index, Tensor)
        or edge_index.dim() != 2
        or edge_index.size(0) != 2
        or edge_index.dtype != torch.long
        or edge_index.device != device
    ):
        raise InputError(
            f"`edge_index`: expected int64 [2, E] on {device}, got {describe(edge_index)}"
        )
    E, D = edge_index.size(1), None if linear is None else linear.in_channels
    if edge_attr is not None and D is not None:
        shape = edge_attr.shape if edge_attr.dim() != 1 else (*edge_attr.shape, 1)
        if len(shape) == 2 and shape[0] == E and D in (-1, shape[1]):
            return
    if edge_attr is not None or D is not None:
        expected = "None" if D is None else f"[{E}, {D if D > 0 else 'D'}]"
        raise InputError(f"`edge_attr`: expected {expected}, got {describe(edge_attr)}")
