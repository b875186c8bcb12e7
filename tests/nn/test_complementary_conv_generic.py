"""What PyG's own tests ask of every layer: models of layers, heterogeneous graphs, tools."""

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.explain import DummyExplainer, Explainer, PGExplainer
from torch_geometric.nn import (
    HeteroConv,
    MessagePassing,
    SAGEConv,
    TransformerConv,
    summary,
    to_hetero,
    to_hetero_with_bases,
)
from torch_geometric.nn.models.basic_gnn import BasicGNN
from torch_geometric.testing import assert_module

from pgnn_geo.nn import ComplementaryConv


class ComplementaryGNN(BasicGNN):
    supports_edge_weight = False
    supports_edge_attr = True
    supports_norm_batch = False

    def init_conv(self, in_channels: int, out_channels: int, **kwargs) -> MessagePassing:
        return ComplementaryConv(in_channels, out_channels, heads=2, **kwargs)


X, EDGES = torch.randn(3, 8), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


@pytest.mark.parametrize("out_channels", [None, 16])
@pytest.mark.parametrize("jk", [None, "last", "cat", "max", "lstm"])
@pytest.mark.parametrize("norm", [None, "BatchNorm", "LayerNorm"])
def test_basic_gnn(out_channels, jk, norm):
    model = ComplementaryGNN(
        8, 16, num_layers=3, out_channels=out_channels, act="relu", norm=norm, jk=jk, dropout=0.5
    )
    assert str(model) == "ComplementaryGNN(8, 16, num_layers=3)"
    assert model(X, EDGES).shape == (3, 16)
    model.reset_parameters()


def test_basic_gnn_is_compiled_without_a_break():
    model = ComplementaryGNN(8, 16, num_layers=2).eval()
    torch._dynamo.reset()
    assert torch._dynamo.explain(model)(X, EDGES).graph_break_count == 0
    torch._dynamo.reset()
    out = torch.compile(model, backend="eager", fullgraph=True)(X, EDGES)
    torch.testing.assert_close(out, model(X, EDGES))
    torch._dynamo.reset()


METADATA = (["v", "w"], [("v", "to", "w"), ("w", "to", "v"), ("v", "to", "v")])


def hetero() -> tuple[dict[str, Tensor], dict[tuple[str, str, str], Tensor]]:
    torch.manual_seed(0)
    nodes = {"v": torch.randn(5, 8), "w": torch.randn(7, 8)}
    size = {"v": 5, "w": 7}
    edges = {
        kind: torch.stack(
            [torch.randint(size[kind[0]], (12,)), torch.randint(size[kind[2]], (12,))]
        )
        for kind in METADATA[1]
    }
    return nodes, edges


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ComplementaryConv((-1, -1), 16, heads=2)
        self.conv2 = ComplementaryConv((-1, -1), 8, heads=2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


def test_to_hetero():
    nodes, edges = hetero()
    model = to_hetero(Two(), METADATA, aggr="sum")
    out = model(nodes, edges)
    assert out["v"].shape == (5, 8) and out["w"].shape == (7, 8)
    # By hand: a layer of its own for each kind of edges, summed where they end.
    convs = model.conv1
    hidden = {
        "w": convs.v__to__w((nodes["v"], nodes["w"]), edges["v", "to", "w"]),
        "v": convs.w__to__v((nodes["w"], nodes["v"]), edges["w", "to", "v"])
        + convs.v__to__v((nodes["v"], nodes["v"]), edges["v", "to", "v"]),
    }
    hidden = {kind: value.relu() for kind, value in hidden.items()}
    expected = model.conv2.v__to__w((hidden["v"], hidden["w"]), edges["v", "to", "w"])
    torch.testing.assert_close(out["w"], expected)


def test_to_hetero_with_bases_takes_no_heads():
    # Of no layer with heads: PyG looks for the edges in the second dimension from the end.
    nodes, edges = hetero()
    for layer in (TransformerConv(8, 4, heads=2), ComplementaryConv(8, heads=2)):

        class One(torch.nn.Module):
            def __init__(self, conv: MessagePassing) -> None:
                super().__init__()
                self.conv = conv

            def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
                return self.conv(x, edge_index)

        model = to_hetero_with_bases(One(layer), METADATA, num_bases=2, in_channels={"x": 8})
        with pytest.raises(ValueError, match="Number of messages"):
            model(nodes, edges)


def test_hetero_conv():
    nodes, edges = hetero()
    conv = HeteroConv(
        {
            ("v", "to", "w"): ComplementaryConv((8, 8), 16, heads=2),
            ("w", "to", "v"): SAGEConv((8, 8), 16),
        }
    )
    data = HeteroData({kind: {"x": x} for kind, x in nodes.items()})
    out = conv({kind: data[kind].x for kind in nodes}, edges)
    assert out["v"].shape == (5, 16) and out["w"].shape == (7, 16)


def test_summary():
    table = summary(ComplementaryGNN(8, 16, num_layers=2), X, EDGES)
    assert "ComplementaryConv" in table and "[3, 8], [2, 4]" in table and "[3, 16]" in table


@pytest.mark.parametrize("algorithm", ["PGExplainer", "DummyExplainer"])
def test_explainers(algorithm):
    torch.manual_seed(0)
    model = ComplementaryGNN(8, 16, num_layers=2, out_channels=4)
    config = {"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"}
    target = torch.tensor([0, 1, 2])
    made = PGExplainer(epochs=2) if algorithm == "PGExplainer" else DummyExplainer()
    kind = "phenomenon" if algorithm == "PGExplainer" else "model"
    explainer = Explainer(
        model, made, explanation_type=kind, edge_mask_type="object", model_config=config
    )
    if algorithm == "PGExplainer":
        for epoch in range(2):
            loss = made.train(epoch, model, X, EDGES, target=target, index=torch.tensor([1]))
            assert loss > 0
    arguments = {"target": target, "index": 1} if algorithm == "PGExplainer" else {}
    explanation = explainer(X, EDGES, **arguments)
    assert explanation.edge_mask.shape == (4,)
    assert 0 <= explanation.edge_mask.min() and explanation.edge_mask.max() <= 1


@pytest.mark.parametrize("layer", [ComplementaryConv, TransformerConv])
def test_hooks_see_and_change_what_is_passed(layer):
    # The same hooks on PyG's layer: they are called as often, and what they return counts.
    torch.manual_seed(0)
    conv = layer(8, 8) if layer is ComplementaryConv else layer(8, 1, heads=8)
    plain, calls = conv(X, EDGES), []
    handles = [
        conv.register_propagate_forward_pre_hook(lambda *_: calls.append("before propagate")),
        conv.register_propagate_forward_hook(lambda *_: calls.append("after propagate")),
        conv.register_message_forward_pre_hook(lambda *_: calls.append("before message")),
        conv.register_message_forward_hook(lambda module, inputs, out: 2 * out),
        conv.register_aggregate_forward_hook(lambda *_: calls.append("after aggregate")),
    ]
    changed = conv(X, EDGES)
    assert calls == ["before propagate", "before message", "after aggregate", "after propagate"]
    assert not torch.allclose(changed, plain)
    for handle in handles:
        handle.remove()
    assert torch.equal(conv(X, EDGES), plain)


@pytest.mark.parametrize("layers", [2, 4])
def test_decomposed_layers(layers):
    # PyG may pass the messages of some channels at a time.
    torch.manual_seed(0)
    conv = ComplementaryConv(8, heads=2)
    expected = conv(X, EDGES)
    decomposed = ComplementaryConv(8, heads=2, decomposed_layers=layers)
    decomposed.load_state_dict(conv.state_dict())
    out = assert_module(
        decomposed, X, EDGES, expected_size=(3, 8), atol=1e-6, test_node_permutation=False
    )
    torch.testing.assert_close(out, expected)
