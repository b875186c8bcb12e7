"""Edges of graphs in which every node is joined to every node of its own group."""

from itertools import pairwise

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from pgnn_geo.errors import InputError
from pgnn_geo.graph.checks import describe


def complete_edge_index(
    ptr: Tensor | list[int],
    loop: bool = True,
    as_edge_index: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Joins every node of a group to every node of the same group.

    .. math::
        \mathcal{E} = \{ (\beta, \alpha) : \mathrm{ptr}_g \le \alpha, \beta < \mathrm{ptr}_{g+1}
        \text{ for some } g \}

    Edges are sorted by target, then by source, as :obj:`sort_order="col"` of
    :class:`~torch_geometric.EdgeIndex` asks.

    Args:
        ptr (torch.Tensor or list of int): The node pointers, as :obj:`batch.ptr` holds them. A
            list compiles without a graph break. From a list or a tensor on the CPU, the edges of
            equal-size groups are written without waiting for :obj:`device`.
        loop (bool, optional): Whether a node is joined to itself. (default: :obj:`True`)
        as_edge_index (bool, optional): Whether to return an :class:`~torch_geometric.EdgeIndex`
            that knows its order and its size. (default: :obj:`False`)
        device (torch.device or str, optional): Where the edges are made. (default: the device of
            :obj:`ptr`, the CPU for a list)

    Shapes:
        - **ptr:** :math:`(G + 1)`, int64
        - **output:** :math:`(2, |\mathcal{E}|)`, int64; row 0 holds the sources, row 1 the targets

    Raises:
        InputError: If :obj:`ptr` is not a vector of non-decreasing integers that starts with 0.
    """
    if isinstance(ptr, Tensor) and ptr.dim() == 1 and ptr.dtype == torch.long:
        device = ptr.device if device is None else device
        ptr = ptr.tolist()
    if not isinstance(ptr, list) or not ptr:
        raise InputError(
            f"`ptr`: expected an int64 vector of G + 1 node pointers, got {describe(ptr)}"
        )
    device, groups, num_nodes = torch.device(device or "cpu"), len(ptr) - 1, ptr[-1]
    n = num_nodes // max(groups, 1)
    # Cheaper than tensor operations on so few numbers, and all that equal groups need.
    if ptr == [g * n for g in range(groups + 1)] and n >= 0:
        out = _equal(groups, n, device)
    elif ptr[0] == 0 and ptr == sorted(ptr):
        out = _ragged(ptr, device)
    else:
        raise InputError(
            f"`ptr`: expected non-decreasing pointers that start with 0, got {ptr[:9]}"
        )
    if not loop:
        out = out[:, out[0] != out[1]].contiguous()
    if as_edge_index:
        size = (num_nodes, num_nodes)
        return EdgeIndex(out, sparse_size=size, sort_order="col", is_undirected=True)
    return out


def _equal(groups: int, n: int, device: torch.device) -> Tensor:
    # Two broadcast writes into fresh memory, not a cached template plus offsets: the template has
    # to be read as well, which costs more than it saves for batches of more than a few groups.
    out = torch.empty(2, groups, n, n, dtype=torch.long, device=device)
    nodes = torch.arange(groups * n, device=device).view(groups, n)
    out[0] = nodes.unsqueeze(1)
    out[1] = nodes.unsqueeze(2)
    return out.view(2, -1)


def _ragged(ptr: list[int], device: torch.device) -> Tensor:
    sizes = [end - start for start, end in pairwise(ptr)]
    num_nodes, num_edges = ptr[-1], sum(n * n for n in sizes)
    n = torch.tensor(sizes).to(device)
    degree = n.repeat_interleave(n, output_size=num_nodes)
    first = (n.cumsum(0) - n).repeat_interleave(n, output_size=num_nodes)
    # A target's sources run upwards from the first node of its group: source = edge + shift.
    shift = first + degree - degree.cumsum(0)
    out = torch.empty(2, num_edges, dtype=torch.long, device=device)
    out[1] = torch.repeat_interleave(degree, output_size=num_edges)
    torch.add(shift.index_select(0, out[1]), torch.arange(num_edges, device=device), out=out[0])
    return out
