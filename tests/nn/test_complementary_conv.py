"""What the layer computes: both paths against each other and against other attention code."""

import copy
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import TransformerConv
from torch_geometric.utils import to_dense_batch

from pgnn_geo.errors import InputError
from pgnn_geo.graph import complete_edge_index
from pgnn_geo.nn import ComplementaryConv, edge_attention


def groups_of(sizes: list[int]) -> tuple[Tensor, Tensor]:
    size = torch.tensor(sizes, dtype=torch.long)
    return torch.arange(len(sizes)).repeat_interleave(size), F.pad(size.cumsum(0), (1, 0))


def with_classes(conv: ComplementaryConv) -> ComplementaryConv:
    torch.nn.init.normal_(conv.class_module.weight)  # starts at zero
    return conv


def gradients(out: Tensor, conv: ComplementaryConv, x: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return list(torch.autograd.grad((out * weight).sum(), [x, *conv.parameters()]))


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=0, max_size=7),
    positions=st.sampled_from([(), (3,), (2, 2), (1, 1)]),
    hints=st.sampled_from(["none", "tight", "loose", "tight, unread", "loose, unread"]),
    classes=st.booleans(),
    last=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    normalize=st.sampled_from(["softmax", "sinkhorn"]),
)
# Groups of one node, whose maps need no copy to be flattened.
@example([1, 1], (2, 2), "none", False, True, torch.float64, "softmax")
@example([0, 1, 3], (), "loose, unread", True, False, torch.float64, "sinkhorn")
def test_groups_equal_message_passing(sizes, positions, hints, classes, last, dtype, normalize):
    torch.manual_seed(0)
    num_classes = 3 if classes else None
    conv = ComplementaryConv(6, 8, 4, num_classes=num_classes, normalize=normalize).to(dtype)
    conv = with_classes(conv) if classes else conv
    batch, ptr = groups_of(sizes)
    x = torch.randn(batch.numel(), 6, *positions, dtype=dtype)
    if last and len(positions) == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    node_class = torch.randint(0, 4, batch.shape) if classes else None
    kwargs = {}
    if hints != "none":
        extra = int(hints.startswith("loose"))
        kwargs = {"batch_size": len(sizes) + extra, "max_num_nodes": max(sizes, default=0) + extra}

    expected, (edge_index, expected_alpha) = conv(
        x, complete_edge_index(ptr), node_class=node_class, return_attention_weights=True
    )
    # On a GPU, and while compiling, the sizes are not read from `batch`.
    unread = mock.patch("pgnn_geo.nn.dense_attention.is_compiling", return_value=True)
    with unread if hints.endswith("unread") else nullcontext():
        out = conv(x, batch=batch, node_class=node_class, **kwargs)
        out_too, (edges, alpha) = conv(
            x, batch=batch, node_class=node_class, return_attention_weights=True, **kwargs
        )
    close = {"rtol": 0, "atol": 1e-10 if dtype == torch.float64 else 1e-5}
    assert out.shape == (batch.numel(), 8, *positions)
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(out_too, expected, **close)
    if last and len(positions) == 2 and len(x) > 1:
        assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(edges, edge_index)
    torch.testing.assert_close(alpha, expected_alpha, **close)
    for a, b in zip(gradients(out, conv, x), gradients(expected, conv, x), strict=True):
        torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", ["messages", "edge_attention", "groups"])
def test_equals_transformer_conv(bias, way, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(edge_attention, "LEAST", 0 if way == "edge_attention" else 10**9)
    theirs = TransformerConv(8, 4, heads=3, bias=bias, root_weight=False).double()
    ours = ComplementaryConv(8, 12, heads=3, bias=bias).double()
    ours.lin_out = torch.nn.Identity()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if "skip" not in k})

    batch, ptr = groups_of([4, 2, 5])
    edge_index = complete_edge_index(ptr)
    x = torch.randn(11, 8, dtype=torch.double, requires_grad=True)
    out = ours(x, batch=batch) if way == "groups" else ours(x, edge_index)
    expected = theirs(x, edge_index)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)

    weight = torch.randn_like(out)
    names = [name for name, _ in ours.named_parameters()]
    grads = torch.autograd.grad((out * weight).sum(), [x, *map(ours.get_parameter, names)])
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *map(theirs.get_parameter, names)])
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_equals_multi_head_attention():
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    torch.nn.init.normal_(theirs.in_proj_bias)
    ours = ComplementaryConv(8, heads=2).double()
    for lin, weight, bias in zip(
        (ours.lin_query, ours.lin_key, ours.lin_value),
        theirs.in_proj_weight.chunk(3),
        theirs.in_proj_bias.chunk(3),
        strict=True,
    ):
        lin.load_state_dict({"weight": weight, "bias": bias})
    ours.lin_out.load_state_dict(theirs.out_proj.state_dict())

    batch, _ = groups_of([3, 5])
    x = torch.randn(8, 8, dtype=torch.double)
    dense, mask = to_dense_batch(x, batch)
    expected, weights = theirs(
        dense, dense, dense, key_padding_mask=~mask, average_attn_weights=False
    )
    out, (edge_index, alpha) = ours(x, batch=batch, return_attention_weights=True)
    torch.testing.assert_close(out, expected[mask])
    torch.testing.assert_close(ours(x, batch=batch), expected[mask])
    source, target = edge_index
    first = torch.tensor([0, 3])[batch]
    expected_alpha = weights[batch[target], :, (target - first[target]), (source - first[source])]
    torch.testing.assert_close(alpha, expected_alpha)


def test_positions_share_the_weights_of_their_node():
    # By hand, one head: weights from the means, the same for every position.
    torch.manual_seed(0)
    conv = ComplementaryConv(4, heads=1).double()
    x = torch.randn(3, 4, 2, 5, dtype=torch.double)
    mean = x.mean(dim=(2, 3))
    E = (conv.lin_query(mean) @ conv.lin_key(mean).t() / 2).softmax(dim=1)
    value = torch.einsum("oc,vcij->voij", conv.lin_value.weight, x)
    value = value + conv.lin_value.bias[:, None, None]
    mixed = torch.einsum("ab,bcij->acij", E, value)
    expected = torch.einsum("oc,vcij->voij", conv.lin_out.weight, mixed)
    expected = expected + conv.lin_out.bias[:, None, None]
    for layout in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=layout)
        torch.testing.assert_close(conv(x, batch_size=1), expected)
        torch.testing.assert_close(conv(x, complete_edge_index(torch.tensor([0, 3]))), expected)


def test_blocks_of_queries_change_nothing():
    # More nodes than channels and positions per head: weights are made in blocks, and again.
    torch.manual_seed(0)
    conv = ComplementaryConv(2, heads=2).double()
    batch, ptr = groups_of([11, 30])
    x = torch.randn(41, 2, 3, dtype=torch.double, requires_grad=True)
    out, expected = conv(x, batch=batch), conv(x, complete_edge_index(ptr))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    for a, b in zip(gradients(out, conv, x), gradients(expected, conv, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("positions", [(), (2, 2)])
def test_memory_is_linear_in_the_nodes(positions):
    conv = ComplementaryConv(8, heads=2)

    def saved(n: int) -> int:
        x = torch.randn(n, 8, *positions, requires_grad=True)
        kept: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = conv(x, batch_size=1)
        assert out.requires_grad
        return sum(kept.values())

    assert saved(1024) < 2.2 * saved(512)


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=5), data=st.data())
def test_equivariance(sizes, data):
    torch.manual_seed(0)
    conv = with_classes(ComplementaryConv(8, heads=2, num_classes=3)).double()
    batch, ptr = groups_of(sizes)
    x = torch.randn(batch.numel(), 8, 2, dtype=torch.double)
    node_class = torch.randint(0, 4, batch.shape)
    out = conv(x, batch=batch, node_class=node_class)

    order = data.draw(st.permutations(range(len(sizes))))  # whole groups, and nodes within them
    nodes = torch.cat([ptr[g] + torch.randperm(sizes[g]) for g in order])
    permuted, _ = groups_of([sizes[g] for g in order])
    torch.testing.assert_close(
        conv(x[nodes], batch=permuted, node_class=node_class[nodes]), out[nodes]
    )


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6))
def test_groups_never_mix(sizes):
    torch.manual_seed(0)
    conv = ComplementaryConv(8, heads=2).double()
    batch, _ = groups_of(sizes)
    x = torch.randn(batch.numel(), 8, dtype=torch.double)
    out = conv(x, batch=batch)
    alone = torch.cat([conv(part, batch_size=1) for part in x.split(sizes)])
    torch.testing.assert_close(out, alone)

    other = x.clone()
    other[batch == 0] += 1.0
    changed = (conv(other, batch=batch) != out).any(dim=1)
    assert changed[batch == 0].all() and not changed[batch > 0].any()


@pytest.mark.parametrize("fused", [True, False])
def test_weights_sum_to_one_and_weigh_before_dropout(fused):
    torch.manual_seed(0)
    conv = ComplementaryConv(8, heads=2, dropout=0.5)
    batch, ptr = groups_of([3, 6, 4])
    kwargs = {"batch": batch} if fused else {"edge_index": complete_edge_index(ptr)}
    _, (edge_index, alpha) = conv(torch.randn(13, 8), **kwargs, return_attention_weights=True)
    total = torch.zeros(13, 2).index_add(0, edge_index[1], alpha)
    torch.testing.assert_close(total, torch.ones(13, 2))
    assert alpha.shape == (9 + 36 + 16, 2) and (edge_index[1].diff() >= 0).all()

    x = torch.randn(13, 8)
    assert not torch.equal(conv(x, **kwargs), conv(x, **kwargs))
    conv.eval()
    assert torch.equal(conv(x, **kwargs), conv(x, **kwargs))


def test_dropout_keeps_the_expectation():
    torch.manual_seed(0)
    conv = ComplementaryConv(4, heads=1, dropout=0.3)
    x, edge_index = torch.randn(5, 4), complete_edge_index(torch.tensor([0, 5]))
    expected = copy.deepcopy(conv).eval()(x, batch_size=1)
    with torch.no_grad():
        for kwargs in ({"batch_size": 1}, {"edge_index": edge_index}):
            mean = torch.stack([conv(x, **kwargs) for _ in range(2000)]).mean(dim=0)
            torch.testing.assert_close(mean, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("positions", [(), (2,), (5,)])
@pytest.mark.parametrize("way", ["messages", "edge_attention", "groups", "groups, classes"])
def test_first_and_second_derivatives(positions, way, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(edge_attention, "LEAST", 0 if way == "edge_attention" else 10**9)
    edge_dim = None if way.startswith("groups") else 3
    conv = ComplementaryConv(
        4, heads=2, num_classes=None if way == "groups" else 2, edge_dim=edge_dim
    )
    conv = (conv if way == "groups" else with_classes(conv)).double()
    batch, ptr = groups_of([2, 3])
    x = torch.randn(5, 4, *positions, dtype=torch.double, requires_grad=True)
    edge_index, node_class = complete_edge_index(ptr), torch.tensor([0, 1, 2, 1, 0])
    edge_attr = torch.randn(13, 3, dtype=torch.double, requires_grad=True)
    names = [name for name, _ in conv.named_parameters()]

    def run(x: Tensor, edge_attr: Tensor, *parameters: Tensor) -> Tensor:
        kwargs = {"edge_index": edge_index, "edge_attr": edge_attr}
        kwargs = {"batch": batch} if way.startswith("groups") else kwargs
        weights = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(conv, weights, (x,), kwargs | {"node_class": node_class})

    inputs = (x, edge_attr, *conv.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_bad_input_is_named():
    conv = ComplementaryConv(8, heads=2)
    x, batch = torch.randn(6, 8), torch.tensor([0, 0, 0, 1, 1, 1])
    edge_index = complete_edge_index(torch.tensor([0, 6]))
    for name, args, kwargs in [
        ("batch", (x,), {}),
        ("batch", (x, edge_index), {"batch": batch}),
        ("batch", (x,), {"batch": batch.flip(0)}),
        ("batch", (x,), {"batch": torch.tensor([0, 1, 0, 0, 1, 1])}),
        ("batch", (x,), {"batch": batch[:5]}),
        ("batch", (x,), {"batch": batch.float()}),
        ("batch", (x,), {"batch": batch.to("meta")}),
        ("batch", (x,), {"batch": batch - 1}),
        ("batch", (x,), {"batch": batch, "batch_size": 1}),
        ("batch", (x,), {"batch": batch, "batch_size": 1, "max_num_nodes": 6}),
        ("max_num_nodes", (x,), {"batch": batch, "max_num_nodes": 2}),
        ("max_num_nodes", (x,), {"batch": batch, "batch_size": 3, "max_num_nodes": 2}),
        ("batch_size", (x,), {"batch_size": 4}),
        ("batch_size", (x,), {"batch_size": 0}),
        ("batch", ((x, x),), {"batch": batch}),
        ("x", (torch.randn(6),), {"batch": batch}),
        ("x", (torch.randn(6, 7),), {"batch": batch}),
        ("x", (torch.randn(6, 8, 0),), {"batch": batch}),
        ("x", (x.long(),), {"batch": batch}),
        ("x", (x.to("meta"),), {"batch_size": 2}),
        (r"x\[0\]", ((torch.randn(4, 3), x), edge_index), {}),
        (r"x\[1\]", ((x, torch.randn(4, 3)), edge_index), {}),
        ("edge_index", (x, edge_index.float()), {}),
        ("edge_index", (x, edge_index[0]), {}),
        ("edge_index", (x, edge_index.to("meta")), {}),
        ("edge_attr", (x, edge_index, torch.randn(36, 2)), {}),
        ("edge_attr", (x,), {"batch": batch, "edge_attr": torch.randn(36, 2)}),
        ("size", (x, edge_index), {"size": (6, 5)}),
    ]:
        with pytest.raises(InputError, match=f"`{name}`"):
            conv(*args, **kwargs)
    edges = ComplementaryConv(8, heads=2, edge_dim=3)
    for edge_attr in (None, torch.randn(36, 2), torch.randn(35, 3), torch.randn(36)):
        with pytest.raises(InputError, match=r"`edge_attr`: expected \[36, 3\]"):
            edges(x, edge_index, edge_attr)
    with pytest.raises(InputError, match="`edge_attr`"):
        edges(x, batch=batch)
    classes = ComplementaryConv(8, heads=2, num_classes=3)
    for node_class in (None, torch.zeros(6), torch.zeros(5).long(), torch.zeros(6, 1).long()):
        with pytest.raises(InputError, match="`node_class`"):
            classes(x, batch=batch, node_class=node_class)
    for name, kwargs in [
        ("out_channels", {"out_channels": 9}),
        ("out_channels", {"in_channels": -1}),
        ("out_channels", {"in_channels": (8, -1)}),
        ("heads", {"heads": 0}),
        ("class_embedding", {"class_embedding": "input"}),
        ("dropout", {"dropout": 1.0}),
        ("num_classes", {"num_classes": 0}),
        ("aggr", {"aggr": ["add", "max"]}),
    ]:
        with pytest.raises(InputError, match=f"`{name}`"):
            ComplementaryConv(**{"in_channels": 8, "heads": 2} | kwargs)


@pytest.mark.parametrize("least", [0, 10**9])
@pytest.mark.parametrize("shift", [1, -1])
def test_edges_out_of_range(least, shift, monkeypatch):
    monkeypatch.setattr(edge_attention, "LEAST", least)
    edge_index = complete_edge_index(torch.tensor([0, 6])) + shift
    with pytest.raises((InputError, IndexError), match=r"got (-1|1 to 6|6)"):
        ComplementaryConv(8, heads=2)(torch.randn(6, 8), edge_index)


def test_values_are_not_looked_at():
    # What is not a number stays in its group, and costs no look at all others.
    x, batch = torch.randn(6, 8), torch.tensor([0, 0, 0, 1, 1, 1])
    x[4, 2], x[0, 0] = float("nan"), float("inf")
    out = ComplementaryConv(8, heads=2)(x[[1, 2, 3, 4]], batch=batch[1:5])
    assert out[:2].isfinite().all() and out[2:].isnan().all()


def wave(shape: tuple[int, ...], step: float, start: float = 0.0) -> Tensor:
    n = torch.Size(shape).numel()
    return torch.sin(torch.arange(n, dtype=torch.double) * step + start).view(shape)


def test_parameters_of_version_0_1_give_the_same_numbers():
    # What version 0.1 gave for these parameters and inputs.
    def filled(conv: ComplementaryConv) -> ComplementaryConv:
        named = sorted(conv.state_dict().items())
        state = {name: 0.3 * wave(p.shape, 0.37, i) for i, (name, p) in enumerate(named)}
        conv.load_state_dict(state)
        return conv

    conv = filled(ComplementaryConv(6, 8, heads=2, num_classes=3).double())
    node_class, batch = torch.tensor([0, 1, 1, 2, 0, 3, 3]), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    out = conv(wave((7, 6, 2, 2), 0.71), batch=batch, node_class=node_class)
    expected = [-0.321112017866, -0.535966559338, -0.613507156709, -0.493394213383]
    torch.testing.assert_close(out.flatten()[:124:41], torch.tensor(expected, dtype=out.dtype))

    conv = filled(ComplementaryConv((6, 4), 8, heads=2, edge_dim=3).double())
    x, edges = (wave((5, 6), 0.7), wave((3, 4), 0.9)), torch.tensor([[0, 1, 4, 2], [2, 0, 1, 2]])
    out = conv(x, edges, wave((4, 3), 0.5))
    expected = [-0.196596902299, 0.046800752062, -0.480472656720, 0.115554982956, -0.578712723708]
    torch.testing.assert_close(out.flatten()[::5], torch.tensor(expected, dtype=out.dtype))
