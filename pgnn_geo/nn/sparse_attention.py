"""Attention along edge lists on the CPU, without a feature per edge.

Shapes: N targets and M sources, H heads, D channels per head, E edges.
"""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import EdgeIndex

BLOCK = 4096  # edges; their features stay in the cache


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
        grad_a = _EdgeSum.apply(grad, b, target, source) if ctx.needs_input_grad[0] else None
        grad_b = _EdgeSum.apply(grad, a, source, target) if ctx.needs_input_grad[1] else None
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
        grad_weight = _EdgeDot.apply(grad, b, target, source) if ctx.needs_input_grad[0] else None
        grad_b = _EdgeSum.apply(weight, grad, source, target) if ctx.needs_input_grad[1] else None
        return grad_weight, grad_b, None, None


def edge_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edge_index: Tensor,
    scale: float,
    bias: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Let targets attend to the sources of their edges.

    Args:
        query: Queries [N, H, D].
        key: Keys [M, H, D].
        value: Values [M, H, D'].
        edge_index: Edges [2, E], sources first.
        scale: Factor on the products of queries and keys.
        bias: Added to the logits [E, H].
        dropout: Dropout probability of the attention weights.

    Returns:
        The messages [N, H, D'], and the weights [E, H] before dropout.
    """
    edge_index = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
    order = edge_index[1].argsort(stable=True)
    source = Ends(edge_index[0, order], key.size(0))
    target = Ends(edge_index[1, order], query.size(0), is_sorted=True)
    logits = _EdgeDot.apply(query, key, target, source) * scale
    if bias is not None:
        logits = logits + bias[order]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float))
    # PyG's softmax has no second derivative over sorted edges, and is slow over unsorted ones.
    largest = torch.segment_reduce(logits.detach(), "max", offsets=target.ptr)
    weight = (logits - F.embedding(target.node, largest)).exp()
    total = _EdgeSum.apply(weight, weight.new_ones(*key.shape[:2], 1), target, source).squeeze(2)
    alpha = (weight / F.embedding(target.node, total)).to(value.dtype)
    out = _EdgeSum.apply(F.dropout(alpha, dropout), value, target, source)
    return out, alpha.new_empty(alpha.shape).index_copy(0, order, alpha)
