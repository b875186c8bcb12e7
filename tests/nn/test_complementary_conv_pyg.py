"""The layer as a citizen of PyG: layouts, hooks, explainers, containers."""

import copy
import pickle

import pytest
import torch
import torch_geometric
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GPSConv, Linear, global_mean_pool
from torch_geometric.testing import assert_module
from torch_geometric.utils import coalesce, softmax, to_torch_coo_tensor

from pgnn_geo.errors import InputError
from pgnn_geo.graph import complete_edge_index
from pgnn_geo.nn import ComplementaryConv

BATCH = torch.tensor([0, 0, 0, 1, 1])
EDGES = complete_edge_index(torch.tensor([0, 3, 5]))


def test_repr_and_parameters():
    conv = ComplementaryConv(8, 16, heads=2, num_classes=3)
    assert str(conv) == "ComplementaryConv(8, 16, heads=2)"
    assert str(ComplementaryConv((8, 4), heads=2)) == "ComplementaryConv((8, 4), 4, heads=2)"
    children = {name for name, _ in conv.named_children()} - {"aggr_module"}
    assert children == {"lin_query", "lin_key", "lin_value", "lin_out", "class_module"}
    torch.nn.init.ones_(conv.class_module.weight)
    before = copy.deepcopy(conv.state_dict())
    conv.reset_parameters()
    assert all(not torch.equal(before[name], value) for name, value in conv.state_dict().items())


@pytest.mark.parametrize("edge_dim", [None, 3])
def test_layouts(edge_dim):
    torch.manual_seed(0)
    edge_index = torch.tensor([[0, 1, 2, 3, 4, 4], [1, 0, 0, 1, 1, 3]])
    conv = ComplementaryConv(8, 16, heads=2, edge_dim=edge_dim)
    if edge_dim is None:
        assert_module(conv, torch.randn(5, 8), edge_index, expected_size=(5, 16), atol=1e-6)
    else:
        assert_module(
            conv,
            torch.randn(5, 8),
            edge_index,
            edge_attr=torch.randn(6, 3),
            expected_size=(5, 16),
            test_sparse_layouts=[],
            atol=1e-6,
        )


def test_edge_features_of_a_sparse_matrix():
    torch.manual_seed(0)
    conv, x = ComplementaryConv(8, heads=2, edge_dim=3), torch.randn(5, 8)
    edge_index, edge_attr = coalesce(torch.randint(0, 5, (2, 12)), torch.randn(12, 3))
    adj_t = to_torch_coo_tensor(edge_index.flip(0), edge_attr, size=(5, 5))
    torch.testing.assert_close(conv(x, adj_t), conv(x, edge_index, edge_attr))
    with pytest.raises(InputError, match="`edge_attr`"):
        conv(x, to_torch_coo_tensor(edge_index.flip(0), size=(5, 5)))


def test_bipartite_and_lazy():
    torch.manual_seed(0)
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 0, 0, 1]])
    x = (torch.randn(4, 8), torch.randn(2, 6))
    conv = ComplementaryConv((8, 6), 16, heads=2)
    out = assert_module(conv, x, edge_index, expected_size=(2, 16), atol=1e-6)
    lazy = ComplementaryConv((-1, -1), 16, heads=2)
    lazy(x, edge_index)
    lazy.load_state_dict(conv.state_dict())
    torch.testing.assert_close(lazy(x, edge_index), out)

    positions = ComplementaryConv((8, 6), 16, heads=2)
    assert positions((torch.randn(4, 8, 3, 3), x[1]), edge_index).shape == (2, 16, 3, 3)


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 3)])
def test_edge_features(shape):
    torch.manual_seed(0)
    conv = ComplementaryConv(8, heads=2, edge_dim=shape[1] if len(shape) > 1 else 1).double()
    lazy = ComplementaryConv(-1, 8, heads=2, edge_dim=-1).double()
    x, edge_index = torch.randn(7, 8, dtype=torch.double), torch.randint(0, 7, (2, 20))
    edge_attr = torch.randn(shape, dtype=torch.double)
    out, (_, alpha) = conv(x, edge_index, edge_attr, return_attention_weights=True)
    lazy(x, edge_index, edge_attr)
    lazy.load_state_dict(conv.state_dict())
    torch.testing.assert_close(lazy(x, edge_index, edge_attr), out)

    # Features of edges are a bias of the logits, which PyG's softmax turns into the same weights.
    query, key = (lin(x).view(-1, 2, 4) for lin in (conv.lin_query, conv.lin_key))
    logits = (query[edge_index[1]] * key[edge_index[0]]).sum(-1) / 2
    logits = logits + edge_attr.view(20, -1) @ conv.lin_edge.weight.t()
    torch.testing.assert_close(alpha, softmax(logits, edge_index[1]))


def test_edge_index_subclass():
    conv = ComplementaryConv(8, heads=2)
    x = torch.randn(5, 8)
    edges = EdgeIndex(EDGES, sparse_size=(5, 5), sort_order="col")
    out, (returned, _) = conv(x, edges, return_attention_weights=True)
    assert returned is edges
    torch.testing.assert_close(out, conv(x, batch=BATCH))


def test_return_attention_weights_by_truthiness():
    conv, x = ComplementaryConv(8, heads=2), torch.randn(5, 8)
    for value in (False, None, 0):
        assert isinstance(conv(x, EDGES, return_attention_weights=value), Tensor)
        assert isinstance(conv(x, batch=BATCH, return_attention_weights=value), Tensor)
    out, (edge_index, alpha) = conv(x, EDGES, return_attention_weights=True)
    assert edge_index is EDGES and alpha.shape == (13, 2)
    assert torch.equal(out, conv(x, EDGES))


@pytest.mark.parametrize("kind", ["propagate", "message", "aggregate", "edge_update"])
@pytest.mark.parametrize("when", ["forward_pre_hook", "forward_hook"])
def test_hooks_see_the_edges_of_the_fused_path(kind, when):
    torch.manual_seed(0)
    conv, x = ComplementaryConv(8, heads=2), torch.randn(5, 8)
    expected = conv(x, batch=BATCH)
    seen = []
    hook = getattr(conv, f"register_{kind}_{when}")(lambda *args: seen.append(len(args)))
    torch.testing.assert_close(conv(x, batch=BATCH), expected)
    assert len(seen) == 1
    hook.remove()
    conv(x, batch=BATCH)
    assert len(seen) == 1


def test_message_hook_reads_alpha():
    conv, x, seen = ComplementaryConv(8, heads=2), torch.randn(5, 8), []
    conv.register_message_forward_hook(lambda module, inputs, out: seen.append(inputs[0]["alpha"]))
    _, (_, alpha) = conv(x, batch=BATCH, return_attention_weights=True)
    torch.testing.assert_close(seen[0], alpha)


class Net(torch.nn.Module):
    def __init__(self, fused: bool):
        super().__init__()
        self.conv1 = ComplementaryConv(8, 16, heads=2)
        self.conv2 = ComplementaryConv(16, heads=2)
        self.lin = Linear(16, 4)
        self.fused = fused

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        kwargs = {"batch": BATCH} if self.fused else {"edge_index": edge_index}
        x = self.conv1(x, **kwargs).relu()
        x = self.conv2(x, **kwargs).relu()
        return self.lin(x).log_softmax(dim=-1)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_explainer(fused):
    torch.manual_seed(0)
    model, x = Net(fused).eval(), torch.randn(5, 8)
    explainer = Explainer(
        model=model,
        algorithm=AttentionExplainer(reduce="mean"),
        explanation_type="model",
        edge_mask_type="object",
        model_config={
            "mode": "multiclass_classification",
            "task_level": "graph",
            "return_type": "log_probs",
        },
    )
    mask = explainer(x, EDGES).edge_mask
    hidden = model.conv1(x, EDGES, return_attention_weights=True)
    alphas = [
        hidden[1][1],
        model.conv2(hidden[0].relu(), EDGES, return_attention_weights=True)[1][1],
    ]
    torch.testing.assert_close(mask, torch.stack([a.mean(-1) for a in alphas], -1).mean(-1))


@pytest.mark.parametrize("fused", [True, False])
def test_gnn_explainer(fused):
    torch.manual_seed(0)
    model, x = Net(fused).eval(), torch.randn(5, 8)
    before = model(x, EDGES)
    explainer = Explainer(
        model=model,
        algorithm=GNNExplainer(epochs=20),
        explanation_type="model",
        node_mask_type="object",
        edge_mask_type="object",
        model_config={
            "mode": "multiclass_classification",
            "task_level": "node",
            "return_type": "log_probs",
        },
    )
    explanation = explainer(x, EDGES, index=1)
    assert explanation.validate()
    assert explanation.edge_mask.shape == (13,)
    assert explanation.edge_mask[:9].max() > 0  # the group of node 1, and only that
    assert explanation.edge_mask[9:].max() == 0
    torch.testing.assert_close(model(x, EDGES), before)


def test_sequential_gps_and_loader():
    torch.manual_seed(0)
    model = torch_geometric.nn.Sequential(
        "x, edge_index, batch, none",
        [
            (ComplementaryConv(8, heads=2), "x, edge_index -> x"),
            (ComplementaryConv(8, heads=2), "x, none, none, batch -> x"),
            (GPSConv(8, ComplementaryConv(8, heads=2), heads=2), "x, edge_index, batch -> x"),
            (global_mean_pool, "x, batch -> x"),
        ],
    )
    data = [Data(x=torch.randn(n, 8), edge_index=torch.randint(0, n, (2, 7))) for n in (3, 5)]
    for batch in DataLoader(data, batch_size=2):
        assert model(batch.x, batch.edge_index, batch.batch, None).shape == (2, 8)


def test_copies_and_pickles():
    torch.manual_seed(0)
    conv, x = ComplementaryConv(8, heads=2, num_classes=2), torch.randn(5, 8)
    node_class = torch.tensor([0, 1, 2, 0, 1])
    expected = conv(x, batch=BATCH, node_class=node_class)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(other(x, batch=BATCH, node_class=node_class), expected)
        torch.testing.assert_close(other(x, EDGES, node_class=node_class), expected)
