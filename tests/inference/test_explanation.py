"""Explanations against plain arithmetic and against what the layers compute on their fused ways."""

import pytest
import torch
import torch.nn.functional as F

from pgnn_geo.datasets import Shapes, SquareTransform
from pgnn_geo.errors import InputError
from pgnn_geo.features import FrozenFeatureConfig
from pgnn_geo.inference.explanation import (
    edge_weights,
    evidence_nodes,
    explain_position,
    partners_of,
)
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.labels import MapConfig, attention_maps
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.labels.labeller import Labeller
from pgnn_geo.nn import PGNN, CongenericPropagation
from pgnn_geo.nn.backbones import BackboneSource

EVIDENCE = EvidenceConfig(
    evidence_penalty=1e-2, prototype_rounds=1, classifier_rounds=1, positions=2000, iterations=20
)


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64)


@pytest.fixture(scope="module")
def labeller(shapes, tmp_path_factory):
    source = BackboneSource("vgg_tiny", "TEXTURES")
    folder = tmp_path_factory.mktemp("bank")
    features = FrozenFeatureConfig(size=64)
    return Labeller.fit(source, shapes, folder, SupervisionLedger(), features, EVIDENCE)


def test_edges_are_normalized_powers_of_rectified_cosines():
    torch.manual_seed(0)
    target, source = torch.randn(5, 16), torch.randn(9, 16)
    cosine = F.cosine_similarity(target[:, None], source[None], dim=2).relu() ** 2
    expected = cosine / cosine.sum(dim=1, keepdim=True)
    found = edge_weights(CongenericPropagation(power=2.0), target, source)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel, power", [("cosine", 2.0), ("softmax", 8.0), ("linear", 1.0)])
def test_edges_are_what_the_layer_gives_each_source(kernel, power):
    target, source = torch.randn(5, 16), torch.randn(9, 16)
    layer = CongenericPropagation(kernel, mean=torch.randn(16), power=power)
    batch = torch.zeros(9, dtype=torch.long), torch.zeros(5, dtype=torch.long)
    expected = layer(torch.eye(9), (source, target), batch=batch)
    torch.testing.assert_close(edge_weights(layer, target, source), expected)


def test_heat_adds_up_to_the_map_of_the_frozen_flow(shapes, labeller, tmp_path):
    label = int(shapes.tags[3].argmax())
    name = shapes.classes[label]
    found = explain_position(labeller, shapes, shapes.image_ids[3], (37, 22), name, partners=2)
    side = 64 // 8
    assert found.position == (22 * side // 64, 37 * side // 64)
    assert found.heat.shape == found.weight.shape == (3, side, side)
    # The edges from the photo, and those from all partners, have weights of sum one.
    torch.testing.assert_close(found.weight[0].sum(), torch.tensor(1.0))
    torch.testing.assert_close(found.weight[1:].sum(), torch.tensor(1.0))
    # What they carry is, up to its maximum, the map that labels are made from.
    bank = labeller.bank(shapes, tmp_path)
    source = labeller.model.before_propagation(bank, shapes.tags)
    x, evidence = evidence_nodes(source, [3], label)
    raw = edge_weights(source.layer, x[0], x[0]) @ evidence[0]
    maps = labeller.model.maps(bank, shapes.tags)
    wanted = maps.dense(torch.tensor([3]))[0, label]
    torch.testing.assert_close((raw / raw.max()).view(side, side), wanted)
    assert found.evidence == pytest.approx(float(raw[found.node]), rel=1e-4)
    torch.testing.assert_close(found.heat[0].sum(), raw[found.node])
    assert set(found.prototypes) == set(shapes.classes)


def test_a_network_without_a_graph(shapes):
    torch.manual_seed(0)
    model = PGNN("vgg_tiny", len(shapes.classes), layers=0, weights=None)
    config = MapConfig(size=64, output_stride=8, propagation_whitening=0.1)
    index, label = 4, int(shapes.tags[4].int().argmax())
    maps = attention_maps(model, shapes, config)[index][0]  # the first tag
    places = [(9, 9), (60, 3), (33, 50)]
    values = [explain_position(model, shapes, index, xy, maps=config).evidence for xy in places]
    expected = torch.stack([maps[y * 8 // 64, x * 8 // 64] for x, y in places])
    # The map is divided by its maximum, so ratios are compared.
    torch.testing.assert_close(torch.tensor(values) / values[0], expected / expected[0])
    plain = MapConfig(size=64, propagate="none")
    with pytest.raises(InputError, match="not propagated"):
        explain_position(model, shapes, index, (9, 9), shapes.classes[label], maps=plain)


def test_attention_of_a_patch_graph_is_that_of_the_layer(shapes):
    torch.manual_seed(0)
    model = PGNN("vgg_tiny", len(shapes.classes), grid=4, heads=2, weights=None).eval()
    config = MapConfig(size=64, output_stride=8)
    found = explain_position(model, shapes, 2, (40, 9), partners=[7, 11], maps=config)
    chosen = shapes.subset([2, 7, 11]).with_transform(SquareTransform(64))
    images = torch.stack([torch.as_tensor(chosen[i]["image"]) for i in range(3)])
    model.backbone.set_output_stride(8)
    with torch.no_grad():
        batch = model.builder(model.backbone(images))
        _, (edge_index, alpha) = model.blocks[0].attention(
            batch.x, batch=batch.batch, return_attention_weights=True
        )
    node = (9 * 4 // 64) * 4 + 40 * 4 // 64
    expected = alpha[edge_index[1] == node].mean(dim=1).view(3, 4, 4)
    torch.testing.assert_close(found.heat, expected)
    assert found.node == node and found.image_ids[1] == shapes.image_ids[7]
    edges, values = found.strongest(3)
    flat = expected.flatten().clone()
    flat[node] = 0
    torch.testing.assert_close(values, flat.sort(descending=True).values[:3])
    assert (edges[1] == node).all() and node not in edges[0]


def test_the_figure_shows_every_photo_and_the_strongest_edges(shapes, labeller):
    pytest.importorskip("matplotlib")
    found = explain_position(labeller, shapes, 0, (30, 30), partners=2)
    figure = found.figure(lines=3)
    assert [axis.get_title() for axis in figure.axes] == list(found.image_ids)
    assert len([artist for artist in figure.artists]) == 3
    assert found.class_name in figure.get_suptitle()


def test_partners_are_the_next_photos_of_the_class():
    tags = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 0], [1, 0]])
    assert partners_of(tags, 3, 0, 2) == [4, 0]
    assert partners_of(tags, 2, 1, 5) == [1]


@pytest.mark.parametrize(
    ("photo", "position", "class_name", "message"),
    [
        ("nowhere", (1, 1), None, "no such photo"),
        (99, (1, 1), None, "no such photo"),
        (0, (64, 3), None, "within 64 x 64 pixels"),
        (0, (1, 1), "unicorn", "want one of"),
        (0, (1, 1), "ABSENT", "is not tagged"),
    ],
)
def test_wrong_arguments(shapes, labeller, photo, position, class_name, message):
    if class_name == "ABSENT":
        class_name = shapes.classes[int((~shapes.tags[0].bool()).int().argmax())]
    with pytest.raises(InputError, match=message):
        explain_position(labeller, shapes, photo, position, class_name)


def test_boxes_are_no_grid(shapes):
    model = PGNN("vgg_tiny", len(shapes.classes), box_size=2, weights=None)
    with pytest.raises(InputError, match="want a grid"):
        explain_position(model, shapes, 0, (1, 1))
