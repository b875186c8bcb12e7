"""Attention on complete graphs without an edge list: nodes in groups, groups in dense batches.

Shapes: V nodes, P positions per node, H heads, D channels per head, g groups of n slots.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils.checkpoint import checkpoint

from pgnn_geo.errors import InputError, expect
from pgnn_geo.graph.checks import describe
from pgnn_geo.graph.edges import complete_edge_index
from pgnn_geo.nn.fusion import is_eager
from pgnn_geo.nn.sinkhorn import column_potential


class Bucket(NamedTuple):
    """Groups that are attended to in one dense batch."""

    groups: int  # g
    slots: int  # n, the nodes of its largest group
    node: Tensor | None = None  # [g * n], the node in each slot; None: all nodes, in order
    mask: Tensor | None = None  # [g, n], True for a node and False for padding


class Groups(NamedTuple):
    """Where the nodes of each complete graph are."""

    buckets: list[Bucket]
    slot: Tensor | None  # [V], the slot of each node, counted over all buckets; None: in order
    ptr: Tensor  # [G + 1], the first node of each group, on the host where the sizes are known

    def edge_index(self, device: torch.device) -> Tensor:
        """The edges that join all nodes of each group, see :func:`complete_edge_index`."""
        if self.slot is not None:
            return complete_edge_index(self.ptr, device=device)
        g, n, *_ = self.buckets[0]  # numbers, which a compiler knows
        node = torch.arange(g * n, device=device).view(g, n)
        pairs = node.unsqueeze(1).expand(g, n, n), node.unsqueeze(2).expand(g, n, n)
        return torch.stack(pairs).flatten(1)


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
        assert batch_size is not None
        fits = batch_size > 0 and num_nodes % batch_size == 0
        expect(fits, "batch_size", f"a divisor of {num_nodes} nodes without `batch`", batch_size)
        return _equal(batch_size, num_nodes)
    if batch.shape != (num_nodes,) or batch.dtype != torch.long or batch.device != x.device:
        raise InputError(
            f"`batch`: expected int64 [{num_nodes}] on {x.device}, one group id per node, "
            f"got {describe(batch)}"
        )

    hinted = batch_size is not None and max_num_nodes is not None
    if is_compiling() and not hinted:
        raise InputError(
            "`batch`: torch.compile cannot read the sizes of the groups from it; give "
            "`batch_size` and `max_num_nodes` as well, or `batch_size` alone if all are equal"
        )
    if hinted and not (batch.is_cpu and is_eager(batch)):  # not to be read
        assert batch_size is not None and max_num_nodes is not None
        if num_nodes == 0 or (not is_compiling() and num_nodes == batch_size * max_num_nodes):
            return _equal(batch_size, num_nodes)  # no group is larger, so each is as large
        ids = torch.arange(batch_size + 1, device=x.device)
        ptr = torch.searchsorted(batch, ids)
        return _padded(batch, ptr, [(ids[:-1], max_num_nodes)], x.device)

    sizes = _sizes(batch, batch_size, max_num_nodes)
    if len(set(sizes)) <= 1:
        return _equal(len(sizes), num_nodes)
    # Sizes of a bucket lie within a factor of two, so the padding is less than the nodes however
    # uneven the groups are, and a few dense batches do instead of one per size.
    members: dict[int, list[int]] = {}
    for group, size in enumerate(sizes):
        members.setdefault((size - 1).bit_length(), []).append(group)
    ptr = F.pad(torch.tensor(sizes).cumsum(0), (1, 0))
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    kinds = [(torch.tensor(m), max(sizes[group] for group in m)) for m in members.values()]
    return _padded(batch, ptr, kinds, x.device)


def _sizes(batch: Tensor, batch_size: int | None, max_num_nodes: int | None) -> list[int]:
    """The sizes of the groups that have nodes."""
    ids, count = torch.unique_consecutive(batch, return_counts=True)
    sizes = count.tolist()
    if not sizes:
        return sizes
    if bool((ids.diff() <= 0).any()):
        raise InputError("`batch`: expected sorted ids, groups one after the other, got unsorted")
    low, high, most = int(ids[0]), int(ids[-1]), max(sizes)
    fits = low >= 0 and (batch_size is None or high < batch_size)
    expect(fits, "batch", f"0 to `batch_size`={batch_size} - 1", f"groups {low} to {high}")
    fits = max_num_nodes is None or most <= max_num_nodes
    expect(fits, "max_num_nodes", f"{most}, the largest group, or more", max_num_nodes)
    return sizes


def _equal(groups: int, num_nodes: int) -> Groups:
    slots = num_nodes // max(groups, 1)
    return Groups([Bucket(groups, slots)], None, torch.arange(groups + 1) * slots)


def _padded(
    batch: Tensor, ptr: Tensor, kinds: list[tuple[Tensor, int]], device: torch.device
) -> Groups:
    """One bucket for each kind of groups: their ids, and the slots of each."""
    size = ptr.diff()
    first = torch.zeros_like(size)  # the slot of each group's first node
    buckets, total = [], 0
    for group, slots in kinds:
        offset = torch.arange(slots, device=ptr.device)
        mask = offset < size[group].unsqueeze(1)  # [g, n]
        # Padding repeats the first node of the group: a valid index, and finite numbers.
        node = (ptr[group].unsqueeze(1) + offset * mask).clamp(max=batch.size(0) - 1).flatten()
        # An empty group would be a softmax over nothing: let it see its padding, which is dropped.
        mask = mask | (size[group] == 0).unsqueeze(1)
        first[group] = total + slots * torch.arange(group.size(0), device=ptr.device)
        total += group.size(0) * slots
        buckets.append(Bucket(group.size(0), slots, node.to(device), mask.to(device)))
    slot = first[batch] - ptr[batch] + torch.arange(batch.size(0), device=ptr.device)
    return Groups(buckets, slot.to(device), ptr)


def group_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Groups,
    dropout: float = 0.0,
    relation: Callable[[Tensor, Tensor], Tensor] | None = None,
    node_class: Tensor | None = None,
    rounds: int = 0,
) -> Tensor:
    """Let all nodes of each group attend to each other.

    Args:
        query: Queries [V, H, D].
        key: Keys [V, H, D].
        value: Values [V, H * D] or [V, H * D, *].
        groups: Where the groups are.
        dropout: Dropout probability of the attention weights.
        relation: From the classes of two nodes to the bias of their logits [..., H].
        node_class: The classes [V] for it.
        rounds: Rounds of Sinkhorn's normalization; 0 for softmax.

    Returns:
        The messages, of the shape and the memory layout of the values.
    """
    (_, H, D), positions = query.shape, value.shape[2:]
    value = value.flatten(2) if positions else value.unsqueeze(2)  # [V, H * D, P]
    last = value.stride(1) == 1 and value.size(2) > 1  # channels last in memory
    outs = []
    for bucket in groups.buckets:
        q, k = (_batched(t, bucket).transpose(1, 2) for t in (query, key))  # [g, H, n, D]
        v = _batched(value, bucket).unflatten(2, (H, D))  # [g, n, H, D, P]
        bias = None
        if relation is not None and node_class is not None:
            c = _batched(node_class, bucket)
            bias = relation(c.unsqueeze(2), c.unsqueeze(1)).permute(0, 3, 1, 2)  # [g, H, n, n]
        if rounds:
            potential = _potential(q, k, bias, bucket.mask, rounds)  # [g, H, 1, n]
            bias = potential if bias is None else bias + potential
        if bucket.mask is not None:
            mask = bucket.mask[:, None, None, :]  # [g, 1, 1, n]
            bias = mask if bias is None else bias.masked_fill(~mask, -torch.inf)
        out = _attend(q, k, v.transpose(1, 2).flatten(3), bias, dropout)  # [g, H, n, D * P]
        out = out.transpose(1, 2).unflatten(3, (D, -1)).flatten(0, 1)  # [g * n, H, D, P]
        # Of groups of one node flattening is a view, so the layout has to be asked for.
        outs.append(out.permute(0, 3, 1, 2).flatten(2).contiguous() if last else out.flatten(1, 2))
    out = outs[0] if groups.slot is None else torch.cat(outs).index_select(0, groups.slot)
    out = out.mT if last else out  # [V, H * D, P]
    return out.unflatten(2, positions) if positions else out.squeeze(2)


def _potential(
    q: Tensor, k: Tensor, bias: Tensor | None, mask: Tensor | None, rounds: int
) -> Tensor:
    logits = _logits(q, k, bias)
    if mask is not None:
        # Padding is a graph of its own: it neither listens to nodes nor speaks to them, and no row
        # or column is left without logits.
        alike = mask.unsqueeze(2) == mask.unsqueeze(1)
        logits = logits.masked_fill(~alike.unsqueeze(1), -torch.inf)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float))
    return column_potential(logits, rounds).to(q.dtype)


def _batched(t: Tensor, bucket: Bucket) -> Tensor:
    """Turn [V, *] into [g, n, *]."""
    t = t if bucket.node is None else t.index_select(0, bucket.node)
    return t.unflatten(0, (bucket.groups, bucket.slots))


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    if not is_eager(v):
        return _weigh(q, k, v, bias, dropout)
    width = v.size(-1)
    if width == q.size(-1):  # what the fused kernels want
        if dropout or (bias is not None and bias.requires_grad):  # not theirs
            return _weigh(q, k, v, bias, dropout)
        return _FusedAttention.apply(q, k, v, bias)
    # Values with positions are wider. Blocks of as many queries have weights no larger than the
    # values, and making a block anew in the backward pass is cheap beside multiplying it with them:
    # so memory stays linear in the nodes.
    blocks = q.split(width, dim=2)
    if len(blocks) == 1:
        return _weigh(q, k, v, bias, dropout)
    biases = [bias] * len(blocks)
    if bias is not None and bias.size(2) > 1:
        biases = list(bias.split(width, dim=2))
    parts = [
        checkpoint(_weigh, block, k, v, own, dropout, use_reentrant=False)
        for block, own in zip(blocks, biases, strict=True)
    ]
    return torch.cat(parts, dim=2)


class _FusedAttention(torch.autograd.Function):
    """`scaled_dot_product_attention`; its kernels lack a second derivative, which this one has."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.graph = _fused_graph(q, k, v, mask)
        return ctx.graph[0].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        inputs, create_graph = [q, k, v], torch.is_grad_enabled()
        if create_graph:  # this derivative is to be derived
            out = _weigh(q, k, v, mask, 0.0)
        else:
            out, inputs = ctx.graph or _fused_graph(q, k, v, mask)
            ctx.graph = None  # a second call is rare, and memory is not
        wanted = [t for t in inputs if t.requires_grad]
        grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=create_graph))
        return *(next(grads) if t.requires_grad else None for t in inputs), None


def _fused_graph(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """The kernel's output, and what it was computed from."""
    with torch.enable_grad():
        q, k, v = (t.detach().requires_grad_(t.requires_grad) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, mask), [q, k, v]


def _weigh(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    return F.dropout(_logits(q, k, bias).softmax(dim=-1), dropout) @ v


def _logits(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    logits = (q * q.size(-1) ** -0.5) @ k.mT  # [g, H, n, n]
    if bias is not None and bias.dtype == torch.bool:
        return logits.masked_fill(~bias, -torch.inf)
    return logits if bias is None else logits + bias
