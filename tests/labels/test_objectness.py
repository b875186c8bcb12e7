import pytest
import torch
import torch.nn.functional as F

from pgnn_geo.errors import InputError
from pgnn_geo.labels.objectness import fit_objectness, on_objects
from pgnn_geo.labels.propagation import complete
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.nn import CongenericPropagation
from pgnn_geo.nn.propagation import centered_unit


def photos(count=11, classes=3, channels=6, side=4):
    torch.manual_seed(0)
    features = torch.randn(count, channels, side, side)
    tags = torch.rand(count, classes) < 0.4
    tags[torch.arange(count), torch.arange(count) % classes] = True
    start = TaggedMaps.empty(tags, side)
    return features, start.with_maps(torch.rand(start.maps.shape))


def literal(features, maps, mean, balance):
    """The formula, photo by photo and class by class."""
    tags = maps.tags
    unit = centered_unit(features.permute(0, 2, 3, 1).flatten(1, 2), mean)
    dense = maps.dense(torch.arange(len(tags))).flatten(2).transpose(1, 2)
    best, label = dense.max(2)
    rows = []
    for k in range(tags.size(1)):
        sides, total = [0.0, 0.0], 0.0
        for c in range(tags.size(1)):
            free = ~tags[:, k]
            thing = free[:, None] & (best > 0.5) & (label == c)
            ground = (free & tags[:, c])[:, None] & (best < 0.25)
            if thing.any() and ground.any():
                omega = int(thing.sum()) ** (1 - balance)
                sides[0] += omega * unit[thing].mean(0)
                sides[1] += omega * unit[ground].mean(0)
                total += omega
        plus, minus = sides[0] / total, sides[1] / total
        rows.append(torch.cat([plus - minus, (minus @ minus - plus @ plus)[None] / 2]))
    return torch.stack(rows)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_weights_are_those_of_the_formula(balance):
    features, maps = photos()
    mean = features.mean((0, 2, 3))
    weight = fit_objectness(features, maps, mean, balance=balance)
    torch.testing.assert_close(weight, literal(features, maps, mean, balance))


def test_photos_of_a_class_have_no_say_in_its_own_score():
    features, maps = photos()
    mean = torch.zeros(6)
    weight = fit_objectness(features, maps, mean)
    own = maps.tags[:, 1]
    features[own] = torch.randn_like(features[own])
    other = fit_objectness(features, maps, mean)
    assert torch.equal(weight[1], other[1]) and not torch.equal(weight[0], other[0])


def test_evidence_stays_where_the_propagated_score_is_positive():
    features, maps = photos()
    mean = features.mean((0, 2, 3))
    layer = CongenericPropagation(mean=mean, power=2.0)
    weight = fit_objectness(features, maps, mean)
    rows = complete(features, maps, [on_objects(weight, layer)]).maps
    for row, photo, k in zip(range(len(rows)), maps.owners, maps.classes, strict=True):
        unit = centered_unit(features[photo].flatten(1).t(), mean)
        edges = (unit @ unit.t()).relu() ** 2
        score = unit @ weight[k, :-1] + weight[k, -1]
        kept = maps.maps[row].flatten() * (edges / edges.sum(1, keepdim=True) @ score > 0)
        expected = kept / kept.max().clamp(min=1e-30)
        torch.testing.assert_close(rows[row].flatten(), expected)


def test_a_class_without_others_keeps_its_evidence():
    features, _ = photos(4, 2)
    tags = F.one_hot(torch.tensor([0, 0, 0, 0]), 2).bool()
    start = TaggedMaps.empty(tags, 4)
    maps = start.with_maps(torch.rand(start.maps.shape))
    weight = fit_objectness(features, maps, torch.zeros(6))
    assert not weight[0].any()
    layer = CongenericPropagation(mean=torch.zeros(6))
    assert torch.equal(complete(features, maps, [on_objects(weight, layer)]).maps, maps.maps)


def test_maps_of_other_photos_are_refused():
    features, maps = photos()
    with pytest.raises(InputError, match="features of 10 photos, maps of 11"):
        fit_objectness(features[1:], maps, torch.zeros(6))
