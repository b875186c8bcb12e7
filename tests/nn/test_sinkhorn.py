"""Attention weights as a transport plan, against Sinkhorn's scaling written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import scatter, to_torch_coo_tensor

from pgnn_geo.errors import InputError
from pgnn_geo.graph import complete_edge_index
from pgnn_geo.nn import ComplementaryConv, edge_attention

SIZES = [4, 1, 3]
BATCH = torch.arange(3).repeat_interleave(torch.tensor(SIZES))
EDGES = complete_edge_index(torch.tensor([0, 4, 5, 8]))
HINTS = {"batch": BATCH, "batch_size": 4, "max_num_nodes": 5}


def scaled(kernel: np.ndarray, rounds: int) -> np.ndarray:
    """Rows and columns of a kernel [N, M] divided by their sums in turns, rows last."""
    plan = kernel.copy()
    for _ in range(rounds):
        for axis in (1, 0):
            total = plan.sum(axis=axis, keepdims=True)
            plan = np.divide(plan, total, out=np.zeros_like(plan), where=total > 0)
    total = plan.sum(axis=1, keepdims=True)
    return np.divide(plan, total, out=np.zeros_like(plan), where=total > 0)


def logits_of(conv: ComplementaryConv, target: Tensor, source: Tensor) -> np.ndarray:
    """All logits [H, N, M], by numpy."""
    q, k = (
        (x.flatten(2).mean(2) if x.dim() > 2 else x).numpy() @ lin.weight.numpy().T
        + lin.bias.numpy()
        for x, lin in ((target, conv.lin_query), (source, conv.lin_key))
    )
    D = conv.out_channels // conv.heads
    heads = [slice(h * D, h * D + D) for h in range(conv.heads)]
    return np.stack([q[:, own] @ k[:, own].T / D**0.5 for own in heads])


def by_numpy(conv: ComplementaryConv, x: Tensor, adjacency: np.ndarray) -> Tensor:
    """The layer on the edges where adjacency [N, N], targets first, is 1."""
    value = torch.einsum("oc,vc...->vo...", conv.lin_value.weight, x)
    value = value + conv.lin_value.bias.view(-1, *[1] * (x.dim() - 2))
    parts = []
    for logits, own in zip(logits_of(conv, x, x), value.chunk(conv.heads, dim=1), strict=True):
        plan = torch.from_numpy(scaled(np.exp(logits) * adjacency, conv.sinkhorn_rounds))
        parts.append(torch.einsum("ab,b...->a...", plan, own))
    return conv.lin_out(torch.cat(parts, dim=1))


def layer(rounds: int = 10, spread: float = 3.0, **kwargs) -> ComplementaryConv:
    torch.manual_seed(0)
    conv = ComplementaryConv(
        4, heads=2, normalize="sinkhorn", sinkhorn_rounds=rounds, **kwargs
    ).double()
    with torch.no_grad():
        conv.lin_query.weight *= spread  # or all logits would be nearly the same
    return conv.requires_grad_(False)


def eager(conv: ComplementaryConv, x: Tensor, kwargs: dict) -> Tensor:
    return conv(x, **kwargs)


def compiled(conv: ComplementaryConv, x: Tensor, kwargs: dict) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(conv, backend="eager", fullgraph=True)(x, **kwargs)


def exported(conv: ComplementaryConv, x: Tensor, kwargs: dict) -> Tensor:
    return torch.export.export(conv, (x,), kwargs).module()(x, **kwargs)


def hooked(conv: ComplementaryConv, x: Tensor, kwargs: dict) -> Tensor:
    hook = conv.register_message_forward_hook(lambda *_: None)
    out = conv(x, **kwargs)
    hook.remove()
    return out


def weighted(conv: ComplementaryConv, x: Tensor, kwargs: dict) -> Tensor:
    return conv(x, **kwargs, return_attention_weights=True)[0]


WAYS = {
    "edges": (eager, {"edge_index": EDGES}),
    "edges, hook": (hooked, {"edge_index": EDGES}),
    "edges, compiled": (compiled, {"edge_index": EDGES}),
    "edges, exported": (exported, {"edge_index": EDGES}),
    "EdgeIndex": (
        eager,
        {"edge_index": EdgeIndex(EDGES, sparse_size=(8, 8), sort_order="col")},
    ),
    "COO": (eager, {"edge_index": to_torch_coo_tensor(EDGES.flip(0), size=8)}),
    "batch": (eager, {"batch": BATCH}),
    "batch, weights": (weighted, {"batch": BATCH}),
    "batch, hook": (hooked, {"batch": BATCH}),
    "batch, sizes": (eager, HINTS),
    "batch, sizes, compiled": (compiled, HINTS),
    "batch, sizes, exported": (exported, HINTS),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("positions", [(), (2, 3)])
def test_equals_numpy(way, positions, monkeypatch):
    call, kwargs = WAYS[way]
    conv, x = layer(), torch.randn(8, 4, *positions, dtype=torch.double)
    expected = by_numpy(conv, x, (BATCH[:, None] == BATCH).double().numpy())
    for least in (0, 10**9):  # with and without the faster way along edges
        monkeypatch.setattr(edge_attention, "LEAST", least)
        torch.testing.assert_close(call(conv, x, kwargs), expected, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    edges=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1),
    rounds=st.integers(1, 4),
    flow=st.sampled_from(["source_to_target", "target_to_source"]),
    least=st.sampled_from([0, 10**9]),
)
def test_equals_numpy_on_any_edges(edges, rounds, flow, least):
    conv, x = layer(rounds, flow=flow), torch.randn(6, 4, dtype=torch.double)
    source, target = edge_index = torch.tensor(sorted(edges)).t()
    adjacency = np.zeros((6, 6))
    adjacency[target, source] = 1
    expected = by_numpy(conv, x, adjacency)  # nodes without edges get the bias alone
    edge_index = edge_index if flow == "source_to_target" else edge_index.flip(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge_attention, "LEAST", least)
        out, (_, alpha) = conv(x, edge_index, return_attention_weights=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)
    total = scatter(alpha, target, dim_size=6)
    torch.testing.assert_close(total, (total > 0).double())


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 8), rounds=st.integers(1, 12), spread=st.floats(0.1, 10))
def test_sums_of_columns_are_within_their_bound(n, rounds, spread):
    conv, x = layer(rounds, spread), torch.randn(n, 4, dtype=torch.double)
    _, (edges, alpha) = conv(x, batch_size=1, return_attention_weights=True)
    torch.testing.assert_close(scatter(alpha, edges[1]), torch.ones_like(x[:, :2]))
    sums = scatter(alpha, edges[0])  # of each source's weights
    torch.testing.assert_close(sums.mean(0), torch.ones_like(x[0, :2]))
    for logits, column in zip(logits_of(conv, x, x), sums.t(), strict=True):
        pairs = logits[:, None, :, None] - logits[None, :, :, None]
        crossed = (pairs - pairs.swapaxes(2, 3)).max() if n > 1 else 0.0
        bound = np.tanh(crossed / 4) ** (2 * rounds - 1) * crossed
        assert (column.max() / column.min()).log() <= bound + 1e-9


def test_sources_of_another_number_share_alike():
    conv = layer(50)
    pair = torch.randn(6, 4, dtype=torch.double), torch.randn(3, 4, dtype=torch.double)
    every = torch.cartesian_prod(torch.arange(6), torch.arange(3)).t()
    _, (_, alpha) = conv(pair, every, return_attention_weights=True)
    torch.testing.assert_close(scatter(alpha, every[1]), torch.ones(3, 2, dtype=torch.double))
    torch.testing.assert_close(scatter(alpha, every[0]), torch.full((6, 2), 0.5).double())


@pytest.mark.parametrize("kwargs", [{"batch": BATCH}, {"edge_index": EDGES}])
@pytest.mark.parametrize("least", [0, 10**9])
def test_gradients(kwargs, least, monkeypatch):
    monkeypatch.setattr(edge_attention, "LEAST", least)
    conv = layer(3).requires_grad_()
    x = torch.randn(8, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: conv(x, **kwargs), (x,))
    assert torch.autograd.gradgradcheck(lambda x: conv(x, **kwargs), (x,), atol=1e-4)


def test_a_hub_speaks_for_all_with_softmax_alone():
    # One key is the largest for every query: with softmax it has nearly all of the weight.
    x = torch.eye(5, 4, dtype=torch.double)
    x[4] = 4.0
    for normalize, low, high in (("softmax", 4, 5), ("sinkhorn", 0.9, 1.1)):
        conv = ComplementaryConv(4, heads=1, normalize=normalize, sinkhorn_rounds=50).double()
        for lin in (conv.lin_query, conv.lin_key):
            torch.nn.init.eye_(lin.weight)
            torch.nn.init.zeros_(lin.bias)
        _, (edges, alpha) = conv(x + 1, batch_size=1, return_attention_weights=True)
        assert low < scatter(alpha, edges[0])[4] < high


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_stays_finite(scale):
    # In the log domain: kernels of these logits would be zero or infinite.
    conv, x = layer().float(), (scale * torch.randn(8, 4)).requires_grad_()
    for kwargs in ({"batch": BATCH}, {"edge_index": EDGES}):
        out = conv(x, **kwargs)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert out.isfinite().all() and grad.isfinite().all()


def test_memory_does_not_grow_with_the_rounds():
    def saved(rounds: int) -> int:
        kept: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        conv = layer(rounds).requires_grad_()
        x = torch.randn(64, 4, dtype=torch.double, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = conv(x, batch_size=1)
        assert out.requires_grad
        return sum(kept.values())

    assert saved(20) - saved(10) < 64 * 64 * 8 * 2  # not one more matrix of weights


def test_bad_arguments():
    with pytest.raises(InputError, match=r"normalize.*'softmax' or 'sinkhorn'"):
        ComplementaryConv(4, heads=2, normalize="max")
    with pytest.raises(InputError, match=r"sinkhorn_rounds.*positive"):
        ComplementaryConv(4, heads=2, normalize="sinkhorn", sinkhorn_rounds=0)
