import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.testing import withCUDA
from torch_geometric.utils import to_torch_csc_tensor

from pgnn_geo.errors import InputError
from pgnn_geo.nn.propagation import CongenericPropagation, centered_unit, propagated_maps


def explicit_edges(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """All edges from every source to every target of the same group."""
    return (source[:, None] == target[None, :]).nonzero().t().contiguous()


def dense(kernel, scores, source, target, same, tags=None, target_tags=None):
    """The definition, written out class by class on the full similarity matrix."""
    unit = torch.nn.functional.normalize(source, dim=1)
    similarity = torch.nn.functional.normalize(target, dim=1) @ unit.t() * same
    out = torch.zeros(target.size(0), scores.size(1), dtype=scores.dtype)
    for c in range(scores.size(1)):
        weight = similarity.clamp(min=0) if kernel == "cosine" else similarity
        if tags is not None:
            weight = weight * tags[:, c]
        if kernel == "cosine":
            total = weight.sum(dim=1, keepdim=True)
            weight = torch.where(total > 0, weight / total, torch.zeros_like(weight))
        out[:, c] = weight @ scores[:, c]
    return out if target_tags is None else out * target_tags


def problem(seed, sizes, classes=3, channels=5):
    generator = torch.Generator().manual_seed(seed)
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    features = torch.randn(len(batch), channels, generator=generator, dtype=torch.double)
    scores = torch.rand(len(batch), classes, generator=generator, dtype=torch.double)
    tags = (torch.rand(len(batch), classes, generator=generator) > 0.4).double()
    return batch, features, scores, tags


@pytest.mark.parametrize("kernel", ["cosine", "linear"])
@pytest.mark.parametrize("tagged", [False, True])
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    max_elements=st.integers(1, 60),
)
def test_fused_message_passing_and_definition_agree(kernel, tagged, seed, sizes, max_elements):
    batch, features, scores, tags = problem(seed, sizes)
    mean = torch.randn(5, dtype=torch.double)
    prop = CongenericPropagation(kernel, mean=mean, max_elements=max_elements)
    edge_index = explicit_edges(batch, batch)
    node_tags = tags if tagged else None

    results = []
    weight = torch.randn(len(batch), 3, dtype=torch.double)
    for arguments in ({"edge_index": edge_index}, {"batch": batch}):
        s, f = scores.clone().requires_grad_(), features.clone().requires_grad_()
        out = prop(s, f, node_tags=node_tags, **arguments)
        results.append((out, *torch.autograd.grad((out * weight).sum(), (s, f))))
        with torch.no_grad():
            torch.testing.assert_close(
                prop(s, f, node_tags=node_tags, **arguments), out, rtol=0, atol=1e-12
            )
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    same = (batch[:, None] == batch[None, :]).double()
    centered = features - mean
    expected = dense(kernel, scores, centered, centered, same, node_tags, node_tags)
    torch.testing.assert_close(results[0][0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", ["cosine", "linear"])
def test_bipartite(kernel):
    source_batch, source, scores, tags = problem(0, [4, 6, 3])
    target_batch, target, _, target_tags = problem(1, [2, 0, 5])
    prop = CongenericPropagation(kernel, max_elements=7)
    pair, node_tags = (source, target), (tags, target_tags)
    edge_index = explicit_edges(source_batch, target_batch)
    out = prop(scores, pair, edge_index, node_tags=node_tags)
    assert out.shape == (7, 3)
    fused = prop(scores, pair, batch=(source_batch, target_batch), node_tags=node_tags)
    torch.testing.assert_close(out, fused, rtol=1e-10, atol=1e-10)
    same = (target_batch[:, None] == source_batch[None, :]).double()
    expected = dense(kernel, scores, source, target, same, tags, target_tags)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_group_without_sources_gets_no_evidence():
    scores, features = torch.rand(2, 3), torch.randn(2, 5)
    targets = torch.randn(3, 5)
    batch = (torch.tensor([0, 0]), torch.tensor([0, 1, 1]))
    out = CongenericPropagation()(scores, (features, targets), batch=batch)
    assert torch.equal(out[1:], torch.zeros(2, 3))


def test_by_hand():
    # cosines of the first node: 1, 0.6 and, with the third, -1
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-2.0, 0.0]])
    scores = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.25, 1.0]])
    batch = torch.zeros(3, dtype=torch.long)
    out = CongenericPropagation()(scores, features, batch=batch)
    torch.testing.assert_close(out[0], torch.tensor([1.3 / 1.6, 0.6 / 1.6]))
    torch.testing.assert_close(out[2], scores[2])
    out = CongenericPropagation("linear")(scores, features, batch=batch)
    torch.testing.assert_close(out[0], torch.tensor([1 + 0.3 - 0.25, 0.6 - 1.0]))
    # the second photo lacks class 0: it neither gives to nor takes from that class
    tags = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    out = CongenericPropagation()(scores, features, batch=batch, node_tags=tags)
    torch.testing.assert_close(out[0], torch.tensor([1.0, 0.6 / 1.6]))
    assert out[1, 0] == 0 and out[1, 1] > 0


@pytest.mark.parametrize("power", [2.0, 2.5])
@pytest.mark.parametrize("tagged", [False, True])
def test_power_of_the_cosine(power, tagged):
    batch, features, scores, tags = problem(7, [6, 1, 5])
    prop = CongenericPropagation(power=power, max_elements=7)
    node_tags = tags if tagged else None
    edge_index = explicit_edges(batch, batch)
    results = []
    for arguments in ({"edge_index": edge_index}, {"batch": batch}):
        s, f = scores.clone().requires_grad_(), features.clone().requires_grad_()
        out = prop(s, f, node_tags=node_tags, **arguments)
        results.append((out, *torch.autograd.grad(out.square().sum(), (s, f))))
        with torch.no_grad():
            torch.testing.assert_close(prop(s, f, node_tags=node_tags, **arguments), out)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    unit = torch.nn.functional.normalize(features, dim=1)
    weight = (unit @ unit.t()).clamp(min=0) ** power * (batch[:, None] == batch[None, :])
    if not tagged:
        expected = weight @ scores / weight.sum(dim=1, keepdim=True)
        torch.testing.assert_close(results[0][0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel, power", [("cosine", 0.5), ("linear", 2.0)])
def test_powers_that_make_no_sense(kernel, power):
    with pytest.raises(InputError, match="want 1 or more, and 1 with the linear kernel"):
        CongenericPropagation(kernel, power=power)


def test_linear_is_the_unrectified_dense_sum():
    batch, features, scores, _ = problem(3, [40, 25])
    unit = centered_unit(features, None)
    same = (batch[:, None] == batch[None, :]).double()
    out = CongenericPropagation("linear")(scores, features, batch=batch)
    torch.testing.assert_close(out, (unit @ unit.t() * same) @ scores, rtol=1e-12, atol=1e-12)
    assert out.min() < 0


@pytest.mark.parametrize("kernel", ["cosine", "linear"])
def test_gradcheck_of_the_fused_path(kernel):
    batch, features, scores, tags = problem(5, [4, 3], classes=2, channels=3)
    prop = CongenericPropagation(kernel, mean=torch.ones(3, dtype=torch.double), max_elements=5)
    inputs = (scores.requires_grad_(), features.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda s, f: prop(s, f, batch=batch, node_tags=tags[:, :2]), inputs
    )


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000))
def test_equivariant_within_a_group_and_blind_to_other_groups(seed):
    batch, features, scores, tags = problem(seed, [6, 5])
    prop = CongenericPropagation(max_elements=8)
    out = prop(scores, features, batch=batch, node_tags=tags)
    order = torch.cat([torch.randperm(6), 6 + torch.randperm(5)])
    moved = prop(scores[order], features[order], batch=batch, node_tags=tags[order])
    torch.testing.assert_close(moved, out[order])
    alone = prop(scores[6:], features[6:], batch=batch[6:] - 1, node_tags=tags[6:])
    torch.testing.assert_close(alone, out[6:])
    assert out.min() >= 0 and out.max() <= scores.max() + 1e-12  # a weighted mean, or zero


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return out


def test_no_more_similarities_at_once_than_stated():
    nodes, limit = 1500, 10_000
    features = torch.randn(nodes, 4, requires_grad=True)
    scores = torch.rand(nodes, 3, requires_grad=True)
    batch = torch.zeros(nodes, dtype=torch.long)
    prop = CongenericPropagation(max_elements=limit)
    with LargestTensor() as seen:
        prop(scores, features, batch=batch).sum().backward()
    assert nodes * 4 <= seen.elements <= limit


@pytest.mark.slow
def test_eleven_photos_of_a_thousand_positions():
    nodes = 11 * 32 * 32
    batch = torch.zeros(nodes, dtype=torch.long)
    features, scores = torch.randn(nodes, 64), torch.rand(nodes, 1)
    out = CongenericPropagation()(scores, features, batch=batch)
    unit = centered_unit(features, None)
    for i in (0, 5000, nodes - 1):
        weight = (unit @ unit[i]).relu()
        torch.testing.assert_close(out[i], weight @ scores / weight.sum(), rtol=1e-4, atol=1e-5)


def test_zero_feature_has_finite_gradients():
    features = torch.randn(4, 3)
    features[1] = 0
    features.requires_grad_()
    scores = torch.rand(4, 2)
    for arguments in (
        {"batch": torch.zeros(4, dtype=torch.long)},
        {"edge_index": explicit_edges(torch.zeros(4), torch.zeros(4))},
    ):
        out = CongenericPropagation()(scores, features, **arguments)
        assert torch.equal(out[1], torch.zeros(2))
        (gradient,) = torch.autograd.grad(out.sum(), features)
        assert gradient.isfinite().all() and gradient[1].abs().max() == 0


def test_half_precision_and_autocast():
    batch, features, scores, _ = problem(0, [30], channels=64)
    exact = CongenericPropagation()(scores, features, batch=batch)
    prop = CongenericPropagation(max_elements=100)
    half = prop(scores.bfloat16(), features.half(), batch=batch)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, rtol=0.02, atol=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = prop(scores.float(), features.float(), batch=batch)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), exact, rtol=0.02, atol=0.01)


def test_layouts_and_repr():
    batch, features, scores, tags = problem(2, [3, 4])
    prop = CongenericPropagation(mean=torch.zeros(5))
    assert str(prop) == "CongenericPropagation(kernel='cosine', centered=True)"
    edge_index = explicit_edges(batch, batch)
    before = set(vars(prop))
    out = prop(scores, features, edge_index, node_tags=tags)
    adj = to_torch_csc_tensor(edge_index, size=(7, 7))
    torch.testing.assert_close(prop(scores, features, adj.t(), node_tags=tags), out)
    assert set(vars(prop)) == before  # no state left behind


def test_mean_is_saved_with_the_layer():
    prop = CongenericPropagation(mean=torch.arange(4.0))
    other = CongenericPropagation(mean=torch.zeros(4))
    other.load_state_dict(prop.state_dict())
    assert torch.equal(other.mean, torch.arange(4.0))


def test_input_errors():
    scores, features = torch.rand(3, 2), torch.rand(3, 4)
    batch = torch.zeros(3, dtype=torch.long)
    prop = CongenericPropagation()
    with pytest.raises(
        InputError, match="unknown kernel 'dot': want one of cosine, softmax, linear"
    ):
        CongenericPropagation("dot")
    with pytest.raises(InputError, match="exactly one"):
        prop(scores, features)
    with pytest.raises(InputError, match="sorted"):
        prop(scores, features, batch=torch.tensor([0, 1, 0]))
    with pytest.raises(InputError, match="scores: got 2 rows, want 3"):
        prop(scores[:2], features, batch=batch)
    with pytest.raises(InputError, match="mean has 5 channels, the features have 4"):
        CongenericPropagation(mean=torch.zeros(5))(scores, features, batch=batch)


def test_hooks_are_not_bypassed():
    scores, features = torch.rand(3, 2), torch.rand(3, 4)
    batch = torch.zeros(3, dtype=torch.long)
    prop = CongenericPropagation()
    handle = prop.register_message_forward_hook(lambda module, inputs, out: out * 0)
    with pytest.raises(InputError, match="edge_index"):
        prop(scores, features, batch=batch)
    assert prop(scores, features, explicit_edges(batch, batch)).abs().max() == 0
    handle.remove()
    prop.explain = True
    with pytest.raises(InputError, match="edge_index"):
        prop(scores, features, batch=batch)


@withCUDA
def test_devices(device):
    batch, features, scores, tags = problem(4, [50, 30], channels=16)
    expected = CongenericPropagation(max_elements=300)(
        scores, features, batch=batch, node_tags=tags
    )
    prop = CongenericPropagation(max_elements=300).to(device)
    s, f, b, t = (x.to(device) for x in (scores, features, batch, tags))
    torch.testing.assert_close(prop(s, f, batch=b, node_tags=t).cpu(), expected)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    photos=st.integers(1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    power=st.floats(1, 4),
)
def test_maps_travel_as_nodes_do(seed, photos, height, width, power):
    torch.manual_seed(seed)
    maps = torch.rand(photos, 3, height, width, dtype=torch.double)
    features = torch.randn(photos, 6, height, width, dtype=torch.double)
    features[0, :, 0, 0] = 0  # similar to none, not even to itself
    nodes = height * width
    batch = torch.arange(photos).repeat_interleave(nodes)
    expected = CongenericPropagation(power=power)(
        maps.flatten(2).mT.reshape(-1, 3), features.flatten(2).mT.reshape(-1, 6), batch=batch
    )
    expected[0] = maps[0, :, 0, 0]
    expected = expected.view(photos, nodes, 3).mT.reshape(maps.shape)
    assert torch.allclose(propagated_maps(maps, features, power), expected)
    whole = maps / maps.sum(1, keepdim=True)
    total = propagated_maps(whole, features, power).sum(1)
    assert torch.allclose(total, torch.ones_like(total))
