import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pgnn_geo.boxes import ImageBoxes, PhotoBoxes
from pgnn_geo.datasets import Shapes, SquareTransform, partner_groups
from pgnn_geo.errors import InputError
from pgnn_geo.features.stems import stem_bank
from pgnn_geo.features.views import View
from pgnn_geo.graph.geometry import patch_class
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.labels.maps import MapConfig, attention_maps
from pgnn_geo.nn import PGNN, CongenericPropagation, build_backbone, normalize_attention
from pgnn_geo.nn.decoder import activate

CONFIG = MapConfig(
    size=64,
    source="graph",
    propagate="none",
    flip=False,
    output_stride=8,
    precision="32-true",
)


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return Shapes(shapes_root, "val", num_images=(20, 10), size=64)


def tiny(layers, **options):
    torch.manual_seed(0)
    model = PGNN("vgg_tiny", 5, weights=None, output_stride=8, heads=4, layers=layers, **options)
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.lin_out.weight, std=0.1)
    return model.eval()


def photos(dataset, size=64):
    square = SquareTransform(size)
    return torch.stack([square(dataset[i])["image"].as_subclass(torch.Tensor) for i in range(10)])


def test_without_a_graph_it_is_the_cam(shapes):
    model = tiny(layers=0)
    maps = attention_maps(model, shapes, CONFIG)
    expected = model(photos(shapes)).attention
    for i, tags in enumerate(shapes.tags.bool()):
        # half precision on disk in between
        torch.testing.assert_close(maps[i], expected[i][tags], rtol=5e-3, atol=5e-3)


def test_mirror_images_are_averaged_and_scales_summed(shapes):
    model = tiny(layers=0)
    maps = attention_maps(
        model,
        shapes,
        replace(CONFIG, scales=(1.0, 2.0), flip=True),
    )
    total = 0
    for size in (64, 128):
        x = photos(shapes, size)
        scores = (model(x).scores + model(x.flip(-1)).scores.flip(-1)) / 2
        total = total + torch.nn.functional.interpolate(
            normalize_attention(scores), (8, 8), mode="bilinear"
        )
    expected = normalize_attention(total)
    for i, tags in enumerate(shapes.tags.bool()):
        torch.testing.assert_close(maps[i], expected[i][tags], rtol=1e-2, atol=1e-2)


def test_partners_matter_and_are_reproducible(shapes_root):
    train = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    model = tiny(layers=1)
    one, two, other = (
        attention_maps(model, train, replace(CONFIG, partners=1, seed=seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(one, other, strict=True))


def test_stems_kept_on_disk_change_nothing(shapes, tmp_path):
    model = tiny(layers=1, freeze_stages=2)
    fresh = attention_maps(model, shapes, CONFIG)
    kept = attention_maps(model, shapes, CONFIG, stem_folder=tmp_path)
    stamp = (tmp_path / "stem-64.npy").stat().st_mtime_ns
    again = attention_maps(model, shapes, CONFIG, stem_folder=tmp_path)
    assert (tmp_path / "stem-64.npy").stat().st_mtime_ns == stamp
    for a, b, c in zip(fresh, kept, again, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
        assert torch.equal(b, c)


def test_other_frozen_weights_are_another_bank(shapes, tmp_path):
    model = tiny(layers=0, freeze_stages=1)
    before = stem_bank(model.backbone, shapes, tmp_path, View(64))[0]
    torch.nn.init.normal_(model.backbone.stages[0][0].weight)
    after = stem_bank(model.backbone, shapes, tmp_path, View(64))[0]
    assert not torch.equal(before, after)


def test_the_model_comes_back_as_it_was(shapes):
    model = PGNN("vgg_tiny", 5, weights=None, output_stride=16, layers=0).train()
    attention_maps(model, shapes, CONFIG)
    assert model.training and model.backbone.output_stride == 16


def test_the_head_before_the_graph(shapes):
    model = tiny(layers=1)
    maps = attention_maps(model, shapes, replace(CONFIG, source="backbone"))
    scores = model.backbone_decoder(model.backbone(photos(shapes)))[0]
    expected = normalize_attention(scores)
    for i, tags in enumerate(shapes.tags.bool()):
        torch.testing.assert_close(maps[i], expected[i][tags], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("source", ["graph", "backbone"])
def test_a_network_trained_by_softmax_gives_such_maps(shapes, source):
    model = tiny(layers=1, activation="softmax")
    config = replace(CONFIG, source=source, partners=1, group_size=1)
    maps = attention_maps(model, shapes, config)
    result = model(photos(shapes), group=torch.arange(10))
    scores = result.scores if source == "graph" else result.backbone_scores
    expected = activate(scores, "softmax", shapes.tags)
    expected = expected / expected.amax(dim=(2, 3), keepdim=True).clamp(min=1e-30)
    rectified = attention_maps(model, shapes, replace(config, activation="relu"))
    for i, tags in enumerate(shapes.tags.bool()):
        torch.testing.assert_close(maps[i], expected[i][tags], rtol=5e-3, atol=5e-3)
        own = normalize_attention(scores)[i][tags]
        torch.testing.assert_close(rectified[i], own, rtol=5e-3, atol=5e-3)


def test_features_that_positions_are_compared_by(shapes, monkeypatch):
    def other_weights(name, weights, *arguments):
        torch.manual_seed(7)
        return build_backbone(name, None, *arguments)

    monkeypatch.setattr("pgnn_geo.labels.maps.build_backbone", other_weights)
    model = tiny(layers=0)
    config = replace(CONFIG, propagate="within", propagation_power=2.0)
    trained, auto = (
        attention_maps(model, shapes, replace(config, propagation_features=name))
        for name in ("trained", "auto")
    )
    assert all(torch.equal(a, b) for a, b in zip(trained, auto, strict=True))

    model.config["weights"] = "SOME"  # as if it had been trained from weights of this name
    pretrained, auto, trained_again = (
        attention_maps(model, shapes, replace(config, propagation_features=name))
        for name in ("pretrained", "auto", "trained")
    )
    assert all(torch.equal(a, b) for a, b in zip(pretrained, auto, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trained, trained_again, strict=True))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(trained, pretrained, strict=True))

    levels = [
        F.normalize(x, dim=1) for x in model.backbone.levels(model.backbone.stem(photos(shapes)))
    ]
    nodes = torch.cat(levels, dim=1).half().float()
    layer = CongenericPropagation(mean=nodes.mean(dim=(0, 2, 3)), power=2.0)
    start = model(photos(shapes)).attention[0, shapes.tags[0].bool()]
    zero = torch.zeros(64, dtype=torch.long)
    expected = layer(start.flatten(1).t(), nodes[0].flatten(1).t(), batch=zero).t().view_as(start)
    expected = expected / expected.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(trained[0], expected, rtol=1e-2, atol=1e-2)


def test_pretrained_features_of_random_weights_are_refused(shapes):
    model = tiny(layers=0).train()
    model.backbone.set_output_stride(16)
    config = replace(CONFIG, propagate="within", propagation_features="pretrained")
    with pytest.raises(InputError, match="trained from random weights"):
        attention_maps(model, shapes, config)
    assert model.training and model.backbone.output_stride == 16
    attention_maps(model, shapes, replace(config, propagate="none"))  # nothing is compared


def test_classes_of_nodes_at_inference(shapes):
    model = tiny(layers=1, class_embedding="attention")
    torch.nn.init.normal_(model.blocks[0].attention.class_module.weight)
    plain = attention_maps(model, shapes, CONFIG)
    model.set_node_classes("maps")
    classed = attention_maps(model, shapes, replace(CONFIG, partners=1, group_size=1))
    images, tags = photos(shapes), shapes.tags
    before = model(images, torch.arange(10)).backbone_scores
    node_class = patch_class(activate(before, "relu", tags), 4)
    assert 0 < (node_class > 0).sum() < len(node_class)
    expected = model(images, torch.arange(10), node_class=node_class).attention
    for i, own in enumerate(tags.bool()):
        torch.testing.assert_close(classed[i], expected[i][own], rtol=1e-2, atol=1e-2)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(plain, classed, strict=True))


class TagBoxes:
    """A box of each tag in every photo but the first, another one in every photo."""

    ledger = SupervisionLedger()

    def __init__(self, shapes):
        self.rows = dict(zip(shapes.image_ids, shapes.tags, strict=True))

    def __call__(self, image_id):
        number = int(image_id.split("_")[1])
        classes = self.rows[image_id].nonzero()[:, 0] + 1 if number else torch.zeros(0).long()
        start = (torch.arange(len(classes)) * 11 + 3 * number) % 24
        boxes = torch.stack([start, start + 4, start + 33, start + 20], dim=1).float()
        return ImageBoxes(boxes, classes, torch.linspace(0.9, 0.3, len(classes)))


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_of_all_photos_of_a_group(shapes, flip):
    model = tiny(layers=1, box_size=3, class_embedding="attention")
    torch.nn.init.normal_(model.blocks[0].attention.class_module.weight)
    boxes = PhotoBoxes(TagBoxes(shapes), shapes)
    config = replace(CONFIG, partners=2, group_size=3, flip=flip)
    maps = attention_maps(model, shapes, config, boxes=boxes)

    features = model.backbone(photos(shapes))
    if flip:
        features = (features + model.backbone(photos(shapes).flip(-1)).flip(-1)) / 2
    groups = partner_groups(shapes.tags, partners=2, group_size=3, seed=0)
    own = [boxes.boxes[i].boxes / 8 for i in range(10)]  # 64 pixels, 8 positions
    label = [boxes.boxes[i].classes for i in range(10)]
    assert len(own[0]) == 0 and len(own[1]) > 0
    start = 0
    for i, tags in enumerate(shapes.tags.bool()):
        for row, c in enumerate(tags.nonzero()[:, 0].tolist()):
            scores = [
                model.forward_features(
                    features[group],
                    boxes=[own[j] for j in group],
                    box_class=[label[j] for j in group],
                ).scores[0, c]
                for group in groups.indices[start : start + 2].tolist()
            ]
            start += 2
            expected = normalize_attention(sum(scores)[None, None] / 2)[0, 0]
            torch.testing.assert_close(maps[i][row], expected, rtol=1e-2, atol=1e-2)


def test_a_graph_on_boxes_needs_them(shapes):
    model, boxes = tiny(layers=1, box_size=3), PhotoBoxes(TagBoxes(shapes), shapes)
    some = shapes.subset(range(4))
    for photos_of, given in ((shapes, None), (some, boxes)):
        with pytest.raises(InputError, match="graph are boxes"):
            attention_maps(model, photos_of, CONFIG, boxes=given)
    attention_maps(model, some, replace(CONFIG, source="backbone"))  # the head before it does not


def test_untagged_photos_are_refused(shapes):
    untagged = copy.copy(shapes)
    untagged.tags = None
    with pytest.raises(InputError, match="tags"):
        attention_maps(tiny(0), untagged, CONFIG)
