import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pgnn_geo.errors import InputError
from pgnn_geo.losses import SoftComplementaryLoss, frozen


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class MeanClassifier(nn.Module):
    """Logits = weights times the mean feature: simple enough for values by hand."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, features):
        return features.mean(dim=(2, 3)) @ self.weight.t()


def by_hand():
    """One photo, two classes (the first one tagged), one channel, 1 x 2 positions."""
    return {
        "attention": torch.tensor([[[[0.9, 0.2]], [[0.6, 1.0]]]]),
        "logits": torch.tensor([[1.5, -0.5]]),
        "tags": torch.tensor([[1.0, 0.0]]),
        "features": torch.tensor([[[[2.0, 4.0]]]]),
        "classify": MeanClassifier(torch.tensor([[1.0], [3.0]])),
    }


def logits_by_hand(a=(0.9, 0.2)):
    mask = [sigmoid(10 * (v - 0.5)) for v in a]
    kept = (2 * mask[0] + 4 * mask[1]) / 2
    erased = (2 * (1 - mask[0]) + 4 * (1 - mask[1])) / 2
    return erased, kept


def test_stable_by_hand():
    terms = SoftComplementaryLoss()(**by_hand(), backbone_logits=torch.tensor([[0.0, 2.0]]))
    erased, kept = logits_by_hand()
    destroy = -math.log(1 - sigmoid(erased))
    preserve = -math.log(sigmoid(kept))
    area = (0.9 + 0.2) / 2
    smoothness = (math.sqrt(0.7**2 + 1e-6) + math.sqrt(1e-6)) / 2
    classification = -(math.log(sigmoid(1.5)) + math.log(1 - sigmoid(-0.5))) / 2
    backbone = -(math.log(sigmoid(0.0)) + math.log(1 - sigmoid(2.0))) / 2
    assert terms.destroy.item() == pytest.approx(destroy, rel=1e-5)
    assert terms.preserve.item() == pytest.approx(preserve, rel=1e-5)
    assert terms.area.item() == pytest.approx(area, rel=1e-5)
    assert terms.smoothness.item() == pytest.approx(smoothness, rel=1e-5)
    assert terms.classification.item() == pytest.approx(classification, rel=1e-5)
    assert terms.backbone_classification.item() == pytest.approx(backbone, rel=1e-5)
    total = destroy + preserve + 0.05 * area + 0.8 * smoothness + classification + 0.4 * backbone
    assert terms.total.item() == pytest.approx(total, rel=1e-5)


def test_paper_by_hand():
    terms = SoftComplementaryLoss("paper", weights=(0.5, 2.0, 0.0, 1.0))(**by_hand())
    erased, kept = logits_by_hand()
    assert terms.destroy.item() == pytest.approx(math.log(sigmoid(erased)), rel=1e-5)
    assert terms.preserve.item() == pytest.approx(-math.log(sigmoid(kept)), rel=1e-5)
    total = 0.5 * terms.destroy + 2 * terms.preserve + terms.classification
    torch.testing.assert_close(terms.total, total)  # no area term


def test_paper_has_no_lower_bound_and_stable_has():
    arguments = by_hand()
    arguments["classify"] = MeanClassifier(torch.tensor([[-1e6], [0.0]]))
    assert SoftComplementaryLoss("paper")(**arguments).destroy < -1e5
    assert SoftComplementaryLoss("stable")(**arguments).destroy >= 0


def test_erase_by_hand():
    arguments = by_hand()
    arguments["reference"] = torch.tensor([[[[0.1, 0.8]], [[1.0, 1.0]]]])
    terms = SoftComplementaryLoss("erase")(**arguments)
    erased, _ = logits_by_hand((0.1, 0.8))  # the map itself plays no part
    assert terms.destroy.item() == pytest.approx(-math.log(sigmoid(erased)), rel=1e-5)
    assert terms.preserve == 0
    hard = SoftComplementaryLoss("erase", threshold="hard")(**arguments)
    assert hard.destroy.item() == pytest.approx(-math.log(sigmoid(2 / 2)), rel=1e-5)


def test_thresholds():
    a = torch.tensor([0.0, 0.5, 0.6, 1.0])
    soft = SoftComplementaryLoss(omega=4.0, sigma=0.5).apply_threshold(a)
    torch.testing.assert_close(soft, torch.tensor([sigmoid(4 * (v - 0.5)) for v in a.tolist()]))
    hard = SoftComplementaryLoss(threshold="hard").apply_threshold(a)
    assert hard.tolist() == [0, 0, 1, 1]


def test_total_variation_by_hand():
    a = torch.tensor([[[[0.0, 0.3], [0.4, 0.4]]]], dtype=torch.double)
    loss = SoftComplementaryLoss(eps=1e-12)
    # (0.4, 0.3), (0.1, -), (-, 0), corner; four positions
    assert loss.total_variation(a).item() == pytest.approx((0.5 + 0.1) / 4, abs=1e-5)
    assert loss.total_variation(torch.ones(1, 1, 3, 3)).item() == pytest.approx(1e-6)


def test_union_of_tags_and_asked_classes():
    arguments = by_hand()
    arguments["tags"] = torch.ones(1, 2)
    union = SoftComplementaryLoss()(**arguments)
    m = [sigmoid(10 * (v - 0.5)) for v in (0.9, 1.0)]  # the larger of the two maps
    kept = (2 * m[0] + 4 * m[1]) / 2
    expected = -(math.log(sigmoid(kept)) + math.log(sigmoid(3 * kept))) / 2
    assert union.preserve.item() == pytest.approx(expected, rel=1e-5)
    one = SoftComplementaryLoss()(**arguments, asked=torch.tensor([[1.0, 0.0]]))
    assert one.preserve.item() == pytest.approx(-math.log(sigmoid(logits_by_hand()[1])), rel=1e-5)
    assert one.area == union.area


def random_problem(seed=0, dtype=torch.double):
    generator = torch.Generator().manual_seed(seed)
    tags = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=dtype)
    return {
        "attention": torch.rand(3, 4, 3, 2, generator=generator, dtype=dtype),
        "logits": torch.randn(3, 4, generator=generator, dtype=dtype),
        "tags": tags,
        "features": torch.randn(3, 5, 3, 2, generator=generator, dtype=dtype),
        "classify": MeanClassifier(torch.randn(4, 5, generator=generator, dtype=dtype)),
        "reference": torch.rand(3, 4, 3, 2, generator=generator, dtype=dtype),
    }


@pytest.mark.parametrize("mode", ["stable", "paper", "erase"])
@pytest.mark.parametrize("term", range(7))
def test_gradcheck_of_each_term(mode, term):
    arguments = random_problem()
    loss = SoftComplementaryLoss(mode, area=0.3, eps=1e-3)

    def function(attention, logits, features):
        arguments.update(attention=attention, logits=logits, features=features)
        value = loss(**arguments, backbone_logits=2 * logits)[term]
        return value + 0 * attention.sum()  # some terms are constant in some modes

    inputs = tuple(arguments[k].requires_grad_() for k in ("attention", "logits", "features"))
    if mode == "erase" or term in (3, 4, 5, 6):
        assert torch.autograd.gradcheck(function, inputs)
    else:  # the features are a constant of the two passes, by design
        features = inputs[2].detach()
        assert torch.autograd.gradcheck(lambda a, b: function(a, b, features), inputs[:2])


class Network(nn.Module):
    """A trunk, a graph and a head, with everything that could catch a gradient or a statistic."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Conv2d(3, 6, 3, padding=1)
        self.graph = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.Dropout(0.5))
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, images):
        features = self.trunk(images)
        scores = self.head(self.graph(features))
        positive = scores.relu()
        attention = positive / positive.amax(dim=(2, 3), keepdim=True).clamp(min=1e-5)
        return features, attention, scores.mean(dim=(2, 3))

    def classify(self, features):
        return self.head(self.graph(features)).mean(dim=(2, 3))


@pytest.mark.parametrize("mode", ["stable", "paper"])
@pytest.mark.parametrize("autocast", [False, True])
def test_complementary_passes_reach_the_map_only(mode, autocast):
    torch.manual_seed(0)
    network, tags = Network(), random_problem()["tags"].float()
    loss = SoftComplementaryLoss(mode, weights=(1, 1, 0, 0), area=0.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        features, attention, logits = network(torch.rand(3, 3, 8, 8))
        statistics = network.graph[1].running_mean.clone()
        leaf = attention.detach().requires_grad_()
        terms = loss(
            leaf, logits, tags, features=features, classify=network.classify, modules=[network]
        )
    assert torch.equal(network.graph[1].running_mean, statistics)
    assert network.training and network.graph[2].training
    assert all(p.requires_grad for p in network.parameters())
    for value in (terms.destroy, terms.preserve):
        network.zero_grad()
        (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True)
        assert gradient.abs().max() > 0
        value.backward(retain_graph=True)
        assert all(p.grad is None for p in network.parameters())
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(value, features, retain_graph=True)

    # Through the live map the parameters get what the map passes on, and nothing else.
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        arguments = {"features": features, "classify": network.classify, "modules": [network]}
        live = loss(attention, logits, tags, **arguments).total
    parameters = tuple(network.parameters())
    (passed,) = torch.autograd.grad(terms.destroy + terms.preserve, leaf)
    expected = torch.autograd.grad(attention, parameters, passed, retain_graph=True)
    for a, b in zip(torch.autograd.grad(live, parameters), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_erase_teaches_the_network():
    torch.manual_seed(0)
    network, tags = Network(), random_problem()["tags"].float()
    features, attention, logits = network(torch.rand(3, 3, 8, 8))
    loss = SoftComplementaryLoss("erase", weights=(1, 1, 0, 0))
    arguments = {"features": features, "classify": network.classify, "modules": [network]}
    terms = loss(attention, logits, tags, reference=attention.detach(), **arguments)
    terms.total.backward()
    assert network.head.weight.grad.abs().max() > 0
    assert network.trunk.weight.grad.abs().max() > 0


def test_frozen_restores_after_an_error():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with pytest.raises(KeyError), frozen(module):
        assert not module.weight.requires_grad and not module.training
        raise KeyError
    assert module.weight.requires_grad and not module.bias.requires_grad and module.training


def test_warm_up_and_passes_of_weight_zero():
    arguments = random_problem(dtype=torch.float)
    calls = []
    classifier = arguments["classify"]
    arguments["classify"] = lambda x: calls.append(1) or classifier(x)
    arguments["modules"] = [classifier]
    loss = SoftComplementaryLoss(warmup=2)
    for epoch, passes in ((0, 0), (1, 0), (2, 2), (None, 2)):
        calls.clear()
        terms = loss(**arguments, epoch=epoch)
        assert len(calls) == passes
        assert (terms.destroy == 0) == (terms.area == 0) == (passes == 0)
        assert terms.classification > 0 and terms.smoothness > 0
    calls.clear()
    SoftComplementaryLoss(weights=(0, 1, 1, 1))(**arguments)
    assert len(calls) == 1
    calls.clear()
    warm = {k: arguments[k] for k in ("attention", "logits", "tags")}
    SoftComplementaryLoss(weights=(0, 0, 1, 1))(**warm)
    loss(**warm, epoch=0)


@pytest.mark.parametrize("mode", ["stable", "paper", "erase"])
@settings(deadline=None, max_examples=15)
@given(
    scale=st.sampled_from([1e-3, 1.0, 1e4, 1e30]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    constant=st.sampled_from([None, 0.0, 1.0]),
    seed=st.integers(0, 100),
)
def test_never_nan(mode, scale, dtype, constant, seed):
    arguments = random_problem(seed, dtype=torch.float)
    arguments = {k: v.to(dtype) for k, v in arguments.items()}
    if constant is not None:
        arguments["attention"].fill_(constant)
        arguments["reference"].fill_(constant)
    arguments["logits"] = arguments["logits"] * scale
    arguments["classify"].weight.data *= scale
    arguments["attention"].requires_grad_()
    arguments["logits"].requires_grad_()
    terms = SoftComplementaryLoss(mode)(**arguments)
    assert all(t.dtype == torch.float32 for t in terms)
    if scale <= 1e4:
        assert all(t.isfinite() for t in terms)
    assert not any(t.isnan() for t in terms)
    terms.total.backward()
    assert not arguments["attention"].grad.isnan().any()
    assert not arguments["logits"].grad.isnan().any()


def test_bfloat16_autocast_is_close_to_float32():
    torch.manual_seed(0)
    arguments = random_problem(dtype=torch.float)
    exact = SoftComplementaryLoss()(**arguments)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = SoftComplementaryLoss()(**arguments)
    for a, b in zip(mixed, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_untagged_photos_cost_nothing_but_classification():
    arguments = random_problem(dtype=torch.float)
    arguments["tags"] = torch.zeros(3, 4)
    terms = SoftComplementaryLoss()(**arguments)
    assert terms.destroy == terms.preserve == terms.area == terms.smoothness == 0
    assert terms.total == terms.classification > 0


def test_descent_in_stable_mode_finds_the_object():
    # The class lives in the left half: the map should cover it and nothing else.
    features = torch.zeros(1, 1, 4, 4)
    features[..., :2] = 8.0
    features[..., 2:] = -2.0
    classifier = MeanClassifier(torch.tensor([[1.0]]))
    free = torch.zeros(1, 1, 4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.1)
    loss = SoftComplementaryLoss(weights=(1, 1, 0, 0))
    for _ in range(150):
        optimizer.zero_grad()
        one = torch.ones(1, 1)
        loss(free.sigmoid(), one, one, features=features, classify=classifier).total.backward()
        optimizer.step()
    a = free.sigmoid().detach()
    assert a[..., :2].min() > 0.6 and a[..., 2:].max() < 0.4


def test_input_errors():
    arguments = random_problem(dtype=torch.float)
    for wrong in ({"mode": "soft"}, {"threshold": "step"}, {"weights": (1, 1)}, {"eps": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            SoftComplementaryLoss(**wrong)
    with pytest.raises(InputError, match="attention"):
        SoftComplementaryLoss()(**{**arguments, "tags": torch.ones(3, 5)})
    with pytest.raises(InputError, match="features and classify"):
        SoftComplementaryLoss()(**{**arguments, "features": None})
    with pytest.raises(InputError, match="reference"):
        SoftComplementaryLoss("erase")(**{**arguments, "reference": None})
    with pytest.raises(InputError, match="modules"):
        SoftComplementaryLoss()(**{**arguments, "classify": lambda x: x})
    with pytest.raises(InputError, match="cannot mask"):
        SoftComplementaryLoss()(**{**arguments, "features": torch.rand(3, 5, 6, 4)})


def test_parts_of_a_batch_with_one_count_have_the_terms_of_the_whole_in_the_mean():
    torch.manual_seed(0)
    maps, logits, features = torch.rand(4, 3, 5, 6), torch.randn(4, 3), torch.rand(4, 2, 5, 6)
    tags = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]])
    classify, halves = MeanClassifier(torch.randn(3, 2)), (slice(0, 2), slice(2, 4))
    own = SoftComplementaryLoss(average=lambda count: tags.sum() / 2)
    parts = [
        own(maps[h], logits[h], tags[h], features=features[h], classify=classify) for h in halves
    ]
    whole = SoftComplementaryLoss()(maps, logits, tags, features=features, classify=classify)
    for name, wanted in whole._asdict().items():
        mean = sum(getattr(part, name) for part in parts) / 2
        torch.testing.assert_close(mean, wanted, msg=name)
