"""One meaning: what is computed does not depend on how it is computed.

The expected numbers are made by loops over targets and heads, with no code of the layer.
"""

from collections.abc import Callable
from functools import cache
from typing import Optional

import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import scatter, to_torch_coo_tensor, to_torch_csr_tensor

from pgnn_geo.graph import complete_edge_index
from pgnn_geo.nn import ComplementaryConv, edge_attention

PTR = torch.tensor([0, 3, 6, 9])
EDGES = complete_edge_index(PTR)
BATCH = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
CLASSES = torch.tensor([0, 1, 1, 2, 0, 0, 3, 3, 2])


class Doubled(ComplementaryConv):
    def message(self, value_j: Tensor, alpha: Tensor) -> Tensor:
        return 2 * super().message(value_j, alpha)


class Unweighted(ComplementaryConv):
    def edge_update(self, query_i: Tensor, key_j: Tensor) -> Tensor:
        return torch.ones_like((query_i * key_j).sum(-1))


class Largest(ComplementaryConv):
    def aggregate(self, inputs: Tensor, index: Tensor, dim_size: Optional[int] = None):  # noqa: UP045
        return scatter(inputs, index, 0, dim_size, reduce="max")


class Shifted(ComplementaryConv):
    def update(self, inputs: Tensor) -> Tensor:
        return inputs + 1


class Halved(ComplementaryConv):
    def propagate(self, edge_index, size=None, **kwargs):
        return super().propagate(edge_index, size=size, **kwargs) / 2


def by_hand(
    conv: ComplementaryConv,
    x: Tensor,
    edge_index: Tensor,
    weigh: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(0),
    reduce: Callable[[Tensor], Tensor] = lambda messages: messages.sum(0),
) -> Tensor:
    """Loop over the targets: edges are [2, E], sources first."""
    n = x.flatten(2).mean(2) if x.dim() > 2 else x
    query, key = conv.lin_query(n), conv.lin_key(n)
    value = torch.einsum("oc,vc...->vo...", conv.lin_value.weight, x)
    value = value + conv.lin_value.bias.view(-1, *[1] * (x.dim() - 2))
    D = conv.out_channels // conv.heads
    out = torch.zeros_like(value)
    for target in range(len(x)):
        sources = edge_index[0][edge_index[1] == target]
        for head in range(conv.heads):
            own = slice(head * D, head * D + D)
            logits = key[sources, own] @ query[target, own] / D**0.5
            if conv.class_module is not None:
                same, to_background, background = conv.class_module.weight[:, head]
                own_class, other = CLASSES[target], CLASSES[sources]
                alike = same if own_class > 0 else background
                logits = logits + alike * (other == own_class)
                logits = logits + to_background * ((own_class > 0) & (other == 0))
            weights = weigh(logits).view(-1, *[1] * (x.dim() - 1))
            out[target, own] = reduce(weights * value[sources][:, own])
    return out


CASES = {
    "as it is": (ComplementaryConv, {}, {}),
    "aggr='mean'": (ComplementaryConv, {"aggr": "mean"}, {"reduce": lambda m: m.mean(0)}),
    "aggr='max'": (ComplementaryConv, {"aggr": "max"}, {"reduce": lambda m: m.amax(0)}),
    "message": (Doubled, {}, {"reduce": lambda m: 2 * m.sum(0)}),
    "edge_update": (Unweighted, {}, {"weigh": torch.ones_like}),
    "aggregate": (Largest, {}, {"reduce": lambda m: m.amax(0)}),
    "update": (Shifted, {}, {"reduce": lambda m: m.sum(0) + 1}),
    "propagate": (Halved, {}, {"reduce": lambda m: m.sum(0) / 2}),
}


def exported(conv: ComplementaryConv, x: Tensor, kwargs: dict) -> Tensor:
    return torch.export.export(conv, (x,), kwargs).module()(x, **kwargs)


def compiled(conv: ComplementaryConv, x: Tensor, kwargs: dict) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(conv, backend="eager", fullgraph=True)(x, **kwargs)


def hooked(conv: ComplementaryConv, x: Tensor, kwargs: dict) -> Tensor:
    seen: list[int] = []
    hook = conv.register_message_forward_hook(lambda *_: seen.append(1))
    out = conv(x, **kwargs)
    hook.remove()
    assert seen == [1]
    return out


def eager(conv: ComplementaryConv, x: Tensor, kwargs: dict) -> Tensor:
    return conv(x, **kwargs)


def weighted(conv: ComplementaryConv, x: Tensor, kwargs: dict) -> Tensor:
    return conv(x, **kwargs, return_attention_weights=True)[0]


TURNED = EDGES.flip(0)  # PyG takes the transpose of a sparse adjacency
HINTS = {"batch": BATCH, "batch_size": 4, "max_num_nodes": 5}
WAYS = {
    "edges": (eager, {"edge_index": EDGES}),
    "edges, weights": (weighted, {"edge_index": EDGES}),
    "edges, hook": (hooked, {"edge_index": EDGES}),
    "edges, compiled": (compiled, {"edge_index": EDGES}),
    "edges, exported": (exported, {"edge_index": EDGES}),
    "EdgeIndex": (
        eager,
        {"edge_index": EdgeIndex(EDGES, sparse_size=(9, 9), sort_order="col")},
    ),
    "COO": (eager, {"edge_index": to_torch_coo_tensor(TURNED, size=(9, 9))}),
    "CSR": (eager, {"edge_index": to_torch_csr_tensor(TURNED, size=(9, 9))}),
    "batch": (eager, {"batch": BATCH}),
    "batch, weights": (weighted, {"batch": BATCH}),
    "batch, hook": (hooked, {"batch": BATCH}),
    "batch, sizes": (eager, HINTS),
    "batch_size": (eager, {"batch_size": 3}),
    "batch_size, compiled": (compiled, {"batch_size": 3}),
    "batch_size, exported": (exported, {"batch_size": 3}),
}


def layer(case: str, flow: str = "source_to_target") -> ComplementaryConv:
    kind, options, _ = CASES[case]
    torch.manual_seed(0)
    conv = kind(4, heads=2, num_classes=3, flow=flow, **options).double()
    torch.nn.init.normal_(conv.class_module.weight)
    return conv


@cache
def expected(case: str, positions: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(9, 4, *positions, dtype=torch.double)
    conv = layer(case)
    with torch.no_grad():
        return x, conv.lin_out(by_hand(conv, x, EDGES, **CASES[case][2]))


def runs() -> list[tuple[str, str, str]]:
    """All of it, but what PyG has not: this flow on sparse matrices, compiling its `propagate`."""
    traced = [way for way in WAYS if "compiled" in way or "exported" in way]
    forward = [(case, way) for case in CASES for way in WAYS]
    forward = [(c, w) for c, w in forward if not (c == "propagate" and w in traced)]
    backward = [(c, w) for c, w in forward if w not in ("COO", "CSR", *traced)]
    backward += [("as it is", way) for way in traced]
    return [(*run, "source_to_target") for run in forward] + [
        (*run, "target_to_source") for run in backward
    ]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("case", "way", "flow"), runs())
def test_one_result(case, way, flow, monkeypatch):
    call, kwargs = WAYS[way]
    conv, kwargs = layer(case, flow), kwargs | {"node_class": CLASSES}
    traced = call in (compiled, exported)
    # What a user's method makes of positions is the same traced or not: one of them will do there.
    for positions in ((2, 3),) if traced and case != "as it is" else ((), (2, 3)):
        x, out = expected(case, positions)
        for least in (0, 10**9):  # with and without the faster way along edges
            monkeypatch.setattr(edge_attention, "LEAST", least)
            torch.testing.assert_close(call(conv, x, kwargs), out, rtol=0, atol=1e-10)
            if traced:  # never the faster way
                break


@pytest.mark.parametrize("least", [0, 10**9])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_flow_on_any_edges(flow, least, monkeypatch):
    monkeypatch.setattr(edge_attention, "LEAST", least)
    torch.manual_seed(0)
    conv = ComplementaryConv(4, heads=2, flow=flow).double()
    x, edge_index = torch.randn(9, 4, dtype=torch.double), torch.randint(9, (2, 30))
    turned = edge_index if flow == "source_to_target" else edge_index.flip(0)
    out, (edges, alpha) = conv(x, edge_index, return_attention_weights=True)
    torch.testing.assert_close(out, conv.lin_out(by_hand(conv, x, turned)))
    assert edges is edge_index
    total = scatter(alpha, turned[1], dim_size=9)
    torch.testing.assert_close(total, torch.ones_like(total) * (total > 0))

    pair = (x, torch.randn(3, 4, dtype=torch.double))  # 9 sources, 3 targets
    turned = torch.stack([torch.arange(9), torch.arange(9) % 3])
    edge_index = turned if flow == "source_to_target" else turned.flip(0)
    plain = ComplementaryConv(4, heads=2).double()
    plain.load_state_dict(conv.state_dict())
    expected = plain(pair, turned)
    torch.testing.assert_close(conv(pair, edge_index, size=(9, 3)), expected)


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_weights_of_groups_sum_to_one_at_their_targets(flow):
    conv, x = ComplementaryConv(4, heads=2, flow=flow), torch.randn(9, 4)
    _, (edge_index, alpha) = conv(x, batch=BATCH, return_attention_weights=True)
    hook = conv.register_message_forward_hook(lambda *_: None)
    _, (edges, wanted) = conv(x, batch=BATCH, return_attention_weights=True)
    hook.remove()
    assert torch.equal(edge_index, edges)
    torch.testing.assert_close(alpha, wanted)
    target = edge_index[1 if flow == "source_to_target" else 0]
    torch.testing.assert_close(scatter(alpha, target), torch.ones(9, 2))


def test_methods_of_an_object_are_obeyed():
    torch.manual_seed(0)
    conv, x = ComplementaryConv(4, heads=2).double(), torch.randn(9, 4, dtype=torch.double)
    conv.message = lambda value_j, alpha: 3 * value_j * alpha.unsqueeze(-1)
    expected = conv.lin_out(by_hand(conv, x, EDGES, reduce=lambda m: 3 * m.sum(0)))
    torch.testing.assert_close(conv(x, batch=BATCH), expected)
    torch.testing.assert_close(conv(x, EDGES), expected)
