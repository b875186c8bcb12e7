"""Attention on complete graphs without an edge list: nodes in groups, groups in dense batches.

Shapes: V nodes, P positions per node, H heads, D channels per head, g groups of n slots.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pgnn_geo.errors import InputError
from pgnn_geo.graph.checks import describe


class Bucket(NamedTuple):
    """Groups that are attended to in one dense batch."""

    groups: int  # g
    slots: int  # n, the nodes of its largest group
    node: Tensor | None = None  # [g * n], the node in each slot; None: all nodes, in order
    mask: Tensor | None = None  # [g, n], True for a node and False for padding; None: no padding


class Groups(NamedTuple):
    """Where the nodes of each complete graph are."""

    buckets: list[Bucket]
    slot: Tensor | None  # [V], the slot of each node, counted over all buckets; None: in order
    ptr: Tensor  # [G + 1], the first node of each group, on the host where the sizes are known


def make_groups(
    x: Tensor,
    batch: Tensor | None,
    batch_size: int | None = None,
    max_num_nodes: int | None = None,
) -> Groups:
    """Cut nodes into groups; with `batch_size` and `max_num_nodes`, without host synchronization.

    Raises:
        InputError: If `batch` is not sorted or contradicts the other arguments.
    """
    num_nodes = x.size(0)
    if batch is None:
        if batch_size is None or batch_size < 1 or num_nodes % batch_size:
            raise InputError(
                f"`batch_size`: expected, without `batch`, a divisor of the {num_nodes} nodes, "
                f"got {batch_size}"
            )
        return _equal(batch_size, num_nodes // batch_size, x)
    if batch.shape != (num_nodes,) or batch.dtype != torch.long or batch.device != x.device:
        raise InputError(
            f"`batch`: expected int64 [{num_nodes}] on {x.device}, one group id per node, "
            f"got {describe(batch)}"
        )

    hinted = batch_size is not None and max_num_nodes is not None
    if torch.compiler.is_compiling():
        if not hinted:
            raise InputError(
                "`batch`: torch.compile cannot read the sizes of the groups from it; give "
                "`batch_size` and `max_num_nodes` as well, or `batch_size` alone if all are equal"
            )
    elif batch.is_cpu or not hinted:
        ids, count = torch.unique_consecutive(batch, return_counts=True)
        sizes = count.tolist()
        if len(sizes) > 1 and bool((ids.diff() <= 0).any()):
            raise InputError(
                "`batch`: expected sorted ids, got unsorted ones; the nodes of a group must stand "
                "together"
            )
        if (
            hinted
            and sizes
            and (
                max(sizes) > max_num_nodes or int(ids[0]) < 0 or int(ids[-1]) >= batch_size  # type: ignore[operator]
            )
        ):
            raise InputError(
                f"`batch`: expected `batch_size`={batch_size} groups of up to "
                f"`max_num_nodes`={max_num_nodes} nodes, got groups {int(ids[0])} to "
                f"{int(ids[-1])} of up to {max(sizes)}"
            )
        return _bucket(sizes, x)

    assert batch_size is not None and max_num_nodes is not None
    if num_nodes in (0, batch_size * max_num_nodes):  # no group is larger, so each is as large
        return _equal(batch_size, num_nodes // max(batch_size, 1), x)
    ptr = torch.searchsorted(batch, torch.arange(batch_size + 1, device=x.device))
    index, mask = _slots(ptr[:-1], ptr.diff(), max_num_nodes)
    slot = torch.arange(num_nodes, device=x.device) - ptr[batch] + batch * max_num_nodes
    # An empty group would be a softmax over nothing: let it see its padding, which is dropped.
    mask = mask | (ptr.diff() == 0).unsqueeze(1)
    index = index.clamp(max=num_nodes - 1)
    return Groups([Bucket(batch_size, max_num_nodes, index, mask)], slot, ptr)


def _equal(groups: int, slots: int, x: Tensor) -> Groups:
    ptr = torch.arange(groups + 1) * slots
    return Groups([Bucket(groups, slots)], None, ptr)


def _slots(start: Tensor, size: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    offset = torch.arange(slots, device=start.device)
    mask = offset < size.unsqueeze(1)  # [g, n]
    # Padding repeats the first node of the group: a valid index, and finite numbers.
    return (start.unsqueeze(1) + offset * mask).flatten(), mask


def _bucket(sizes: list[int], x: Tensor) -> Groups:
    if len(set(sizes)) <= 1:
        return _equal(len(sizes), sizes[0] if sizes else 0, x)
    # Sizes of a bucket lie within a factor of two, so the padding is less than the nodes however
    # uneven the groups are, and a few dense batches do instead of one per size.
    members: dict[int, list[int]] = {}
    for group, size in enumerate(sizes):
        members.setdefault((size - 1).bit_length(), []).append(group)
    size_of = torch.tensor(sizes)
    ptr = F.pad(size_of.cumsum(0), (1, 0))
    buckets, slot, total = [], torch.empty(int(ptr[-1]), dtype=torch.long), 0
    for member in members.values():
        slots = max(sizes[group] for group in member)
        index, mask = _slots(ptr[member], size_of[member], slots)
        keep = mask.flatten().nonzero().squeeze(1)
        slot[index[keep]] = keep + total
        total += index.numel()
        padded = keep.numel() < index.numel()
        buckets.append(
            Bucket(len(member), slots, index.to(x.device), mask.to(x.device) if padded else None)
        )
    return Groups(buckets, slot.to(x.device), ptr)


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Groups,
    scale: float,
    dropout: float = 0.0,
    edge_index: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Let all nodes of each group attend to each other.

    Args:
        query: Queries [V, H, D'].
        key: Keys [V, H, D'].
        value: Values [V, P, H, D]; positions that stand behind the channels count as such, P = 1.
        groups: Where the groups are.
        scale: Factor on the products of queries and keys.
        dropout: Dropout probability of the attention weights.
        edge_index: If given, the edges of the complete graphs whose weights are returned, too.

    Returns:
        The messages [V, P, H, D], and the weights [E, H] before dropout or None.
    """
    outs, alphas = [], []
    for bucket in groups.buckets:
        q, k, v = (_batched(t, bucket) for t in (query.unsqueeze(1), key.unsqueeze(1), value))
        mask = None if bucket.mask is None else bucket.mask[:, None, None, :]  # [g, 1, 1, n]
        if edge_index is None:
            out = _attend(q, k, v, mask, scale, dropout)
        else:
            out, alpha = _attend_weights(q, k, v, mask, scale, dropout)
            alphas.append(alpha.permute(0, 2, 3, 1).flatten(0, 2))  # [g * n * n, H]
        out = out.unflatten(-1, (value.size(1), value.size(3)))  # [g, H, n, P, D]
        outs.append(out.permute(0, 2, 3, 1, 4).flatten(0, 1))  # [g * n, P, H, D]

    if groups.slot is None:
        return outs[0], alphas[0] if alphas else None
    out = torch.cat(outs).index_select(0, groups.slot)
    if edge_index is None:
        return out, None
    source, target = edge_index
    start, total = [], 0  # of each slot's row of weights
    for g, n, *_ in groups.buckets:
        start.append(torch.arange(g * n, device=out.device) * n + total)
        total += g * n * n
    ptr = groups.ptr.to(out.device)
    first = ptr[torch.searchsorted(ptr, target, right=True) - 1]
    row = torch.cat(start)[groups.slot].index_select(0, target)
    return out, torch.cat(alphas).index_select(0, row + source - first)


def _batched(t: Tensor, bucket: Bucket) -> Tensor:
    """Turn [V, P, H, D] into [g, H, n, P * D]: a view where P = 1, one copy otherwise."""
    t = t if bucket.node is None else t.index_select(0, bucket.node)
    t = t.unflatten(0, (bucket.groups, bucket.slots))
    return t.permute(0, 3, 1, 2, 4).flatten(3)


def _attend_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> tuple[Tensor, Tensor]:
    alpha = (q * scale) @ k.mT  # [g, H, n, n]
    if mask is not None:
        alpha = alpha.masked_fill(~mask, float("-inf"))
    alpha = alpha.softmax(dim=-1)
    return F.dropout(alpha, dropout) @ v, alpha


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    # The fused kernels want values as wide as the queries.
    width = v.size(-1)
    if width <= q.size(-1):
        v = F.pad(v, (0, q.size(-1) - width)) if width < q.size(-1) else v
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)
        return out[..., :width]
    # Values with positions are wider. Blocks of as many queries have weights no larger than the
    # values, and making a block anew in the backward pass is cheap beside multiplying it with them:
    # so memory stays linear in the nodes.
    blocks = q.split(width, dim=2)
    if len(blocks) == 1:
        return _attend_weights(q, k, v, mask, scale, dropout)[0]
    rest = (k, v, mask, scale, dropout)
    blocks = [checkpoint(_attend_weights, b, *rest, use_reentrant=False)[0] for b in blocks]
    return torch.cat(blocks, dim=2)
