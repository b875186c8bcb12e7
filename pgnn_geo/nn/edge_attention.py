"""Attention along edge lists on the CPU, without a feature per edge.

Message passing writes queries, keys and values out once per edge, [E, H, D] each. Here they are
read where they are, in blocks that stay in the cache.

Shapes: N targets and M sources, H heads, D channels per head, E edges.
"""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import is_sparse

from pgnn_geo.errors import InputError
from pgnn_geo.nn.fusion import is_eager
from pgnn_geo.nn.sinkhorn import edge_potential

BLOCK = 4096  # edges; their features stay in the cache
#: Numbers in the values of all edges, E * H * D, from which on this is faster than messages, see
#: benchmarks/README.md.
LEAST = 2_000_000


class Ends:
    """The nodes at one end of the edges."""

    def __init__(self, node: Tensor, num_nodes: int, is_sorted: bool = False):
        self.node = node  # [E]
        self.num_nodes = num_nodes
        self.is_sorted = is_sorted

    @cached_property
    def order(self) -> Tensor | None:
        """What sorts the edges by this end; None if they are."""
        return None if self.is_sorted else self.node.argsort(stable=True)

    @cached_property
    def ptr(self) -> Tensor:
        """The first edge of each node in that order."""
        count = torch.bincount(self.node, minlength=self.num_nodes)
        return F.pad(count.cumsum(0), (1, 0))


class _EdgeFunction(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.ends = inputs[2:]


class _EdgeDot(_EdgeFunction):
    """Dot products of both ends of each edge: [N, H, D], [M, H, D] -> [E, H]."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, target: Ends, source: Ends) -> Tensor:
        heads = a.shape[1:]
        a, b = a.flatten(1), b.flatten(1)
        ends = zip(target.node.split(BLOCK), source.node.split(BLOCK), strict=True)
        return torch.cat(
            [F.embedding(i, a).mul_(F.embedding(j, b)).unflatten(1, heads).sum(-1) for i, j in ends]
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (a, b), (target, source) = ctx.saved_tensors, ctx.ends
        grad_a = _sum(grad, b, target, source) if ctx.needs_input_grad[0] else None
        grad_b = _sum(grad, a, source, target) if ctx.needs_input_grad[1] else None
        return grad_a, grad_b, None, None


class _EdgeSum(_EdgeFunction):
    """Sums of weighted sources at their targets: [E, H], [M, H, D] -> [N, H, D]."""

    @staticmethod
    def forward(weight: Tensor, b: Tensor, target: Ends, source: Ends) -> Tensor:
        (E, H), D = weight.shape, b.size(2)
        node = source.node
        if target.order is not None:
            weight, node = F.embedding(target.order, weight), node[target.order]
        # One bag for each head and target, whose rows are the heads of the sources.
        head = torch.arange(H).unsqueeze(1)
        out = F.embedding_bag(
            (node * H + head).flatten(),
            b.reshape(-1, D),
            (target.ptr[:-1] + head * E).flatten(),
            mode="sum",
            per_sample_weights=weight.t().flatten(),
        )
        return out.unflatten(0, (H, target.num_nodes)).transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight, b), (target, source) = ctx.saved_tensors, ctx.ends
        grad_weight = _dot(grad, b, target, source) if ctx.needs_input_grad[0] else None
        grad_b = _sum(weight, grad, source, target) if ctx.needs_input_grad[1] else None
        return grad_weight, grad_b, None, None


def _dot(a: Tensor, b: Tensor, target: Ends, source: Ends) -> Tensor:
    if is_eager(a) and is_eager(b):
        return _EdgeDot.apply(a, b, target, source)
    return (a[target.node] * b[source.node]).sum(-1)


def _sum(weight: Tensor, b: Tensor, target: Ends, source: Ends) -> Tensor:
    if is_eager(weight) and is_eager(b):
        return _EdgeSum.apply(weight, b, target, source)
    messages = weight.unsqueeze(-1) * b[source.node]
    return messages.new_zeros(target.num_nodes, *messages.shape[1:]).index_add(
        0, target.node, messages
    )


def is_worthwhile(edge_index: Any, value: Tensor) -> bool:
    """Whether :func:`edge_attention` can be taken for values [M, H, D], and beats messages."""
    return (
        is_eager(value)  # first: sizes are not to be compared where they stay open
        and value.is_cpu
        and not is_sparse(edge_index)
        and edge_index.size(1) * value.shape[1:].numel() >= LEAST
    )


def edge_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    rounds: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Let targets attend to the sources of their edges.

    .. math::
        \mathbf{o}_{\alpha} = \sum_{\beta} \mathrm{softmax}_{\beta} \left(
        \frac{\mathbf{q}_{\alpha}^{\top} \mathbf{k}_{\beta}}{\sqrt{D}} + b_{\alpha\beta} \right)
        \mathbf{v}_{\beta}

    There are first and second derivatives, but no forward ones and no batching rule.

    Args:
        query: Queries [N, H, D].
        key: Keys [M, H, D].
        value: Values [M, H, D'].
        source: The source of each edge [E].
        target: The target of each edge [E].
        bias: Added to the logits [E, H].
        dropout: Dropout probability of the attention weights.
        rounds: Rounds of Sinkhorn's normalization; 0 for softmax.

    Returns:
        The messages [N, H, D'], and the weights [E, H] before dropout.

    Raises:
        InputError: If an edge joins nodes that do not exist.
    """
    for name, node, count in (("source", source, len(key)), ("target", target, len(query))):
        low, high = (int(v) for v in node.aminmax()) if len(node) else (0, -1)
        if low < 0 or high >= count:
            raise InputError(f"`{name}`: expected nodes 0 to {count - 1}, got {low} to {high}")
    order = target.argsort(stable=True)
    sources = Ends(source[order], key.size(0))
    targets = Ends(target[order], query.size(0), is_sorted=True)
    logits = _dot(query, key, targets, sources) * query.size(-1) ** -0.5
    if bias is not None:
        logits = logits + bias[order]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float))
    if rounds:
        sizes = (query.size(0), key.size(0))
        logits = logits + edge_potential(logits, targets.node, sources.node, sizes, rounds)
    # PyG's softmax has no second derivative over sorted edges, and is slow over unsorted ones.
    largest = torch.segment_reduce(logits.detach(), "max", offsets=targets.ptr)
    weight = (logits - F.embedding(targets.node, largest)).exp()
    total = _sum(weight, weight.new_ones(*key.shape[:2], 1), targets, sources).squeeze(2)
    alpha = (weight / F.embedding(targets.node, total)).to(value.dtype)
    out = _sum(F.dropout(alpha, dropout), value, targets, sources)
    return out, alpha.new_empty(alpha.shape).index_copy(0, order, alpha)
