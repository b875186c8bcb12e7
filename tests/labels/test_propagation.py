import pytest
import torch

from pgnn_geo.labels.feature_bank import FeatureBank
from pgnn_geo.labels.propagation import TaggedMaps, propagate
from pgnn_geo.nn import ClassPrototypes, CongenericPropagation
from pgnn_geo.nn.decoder import activate

TAGS = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 0]], dtype=torch.bool)


@pytest.fixture
def bank(tmp_path):
    torch.manual_seed(0)
    features = torch.randn(4, 6, 4, 4).half().float()
    return FeatureBank.build(tmp_path / "f.npy", [features], 4, {})


@pytest.fixture
def start():
    torch.manual_seed(1)
    owners, classes = TAGS.nonzero(as_tuple=True)
    maps = torch.rand(len(owners), 4, 4)
    return TaggedMaps(maps, owners, classes, TAGS).with_maps(maps)


def test_rows_and_dense_maps_agree(start):
    dense = start.dense(torch.tensor([1, 2]))
    assert torch.equal(dense[0], start.maps[1:3])
    assert torch.equal(dense[1, 1], start.maps[3]) and not dense[1, 0].any()


def test_none_changes_nothing(bank, start):
    assert propagate("none", bank, start) is start


def test_prototypes_in_one_pass_by_hand(bank, start):
    features = bank[[0, 1, 2, 3]]
    prototypes = ClassPrototypes(2, 6)
    prototypes.update_mean(features)
    prototypes.update(features, start.dense(torch.arange(4)), TAGS.float())
    expected = start.with_maps(prototypes.score(features)[TAGS]).maps
    torch.testing.assert_close(propagate("prototypes", bank, start).maps, expected)


def test_within_is_propagation_among_one_photos_positions(bank, start):
    mean = bank[[0, 1, 2, 3]].mean(dim=(0, 2, 3))
    layer = CongenericPropagation("cosine", mean=mean)
    result = propagate("within", bank, start).maps
    for r, owner in enumerate(start.owners.tolist()):
        nodes = bank[owner].flatten(1).t()
        expected = layer(start.maps[r].view(-1, 1), nodes, batch=torch.zeros(16, dtype=torch.long))
        torch.testing.assert_close(result[r], start.with_maps(expected.view(1, 4, 4)).maps[0])


def test_a_partner_of_the_class_brings_its_evidence(bank, start):
    group = propagate("group", bank, start, partners=2)
    within = propagate("within", bank, start)
    changed = TaggedMaps(start.maps.clone(), start.owners, start.classes, start.tags)
    changed.maps[2] = 0  # photo 1, class 1; its only partner there is photo 2
    after = propagate("group", bank, changed, partners=2)
    assert (group.maps[0] - within.maps[0]).abs().max() > 1e-3
    torch.testing.assert_close(after.maps[[0, 1, 4]], group.maps[[0, 1, 4]])  # class 0: untouched
    assert (after.maps[3] - group.maps[3]).abs().max() > 1e-3


def test_both_is_one_after_the_other(bank, start):
    first = propagate("prototypes", bank, start)
    torch.testing.assert_close(
        propagate("both", bank, start, partners=2).maps,
        propagate("group", bank, first, partners=2).maps,
    )


@pytest.mark.parametrize("activation", ["relu", "softmax"])
@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_activated_rows_are_activated_dense_scores(start, activation, scale):
    torch.manual_seed(2)
    scores = (scale * torch.randn(4, 2, 4, 4)).double()
    rows = start.activated(scores[TAGS], activation).maps
    dense = activate(scores, activation, TAGS.float())[TAGS]
    expected = dense / dense.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-10)


def test_power_reaches_the_layer(bank, start):
    layer = CongenericPropagation("cosine", mean=bank[[0, 1, 2, 3]].mean(dim=(0, 2, 3)), power=3.0)
    result = propagate("within", bank, start, power=3.0).maps[0]
    nodes = bank[0].flatten(1).t()
    expected = layer(start.maps[0].view(-1, 1), nodes, batch=torch.zeros(16, dtype=torch.long))
    torch.testing.assert_close(result, start.with_maps(expected.view(1, 4, 4)).maps[0])
    assert (result - propagate("within", bank, start).maps[0]).abs().max() > 1e-3
