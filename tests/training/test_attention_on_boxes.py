"""Stage 1 with boxes for patches."""

from dataclasses import replace

import pytest
import torch

from pgnn_geo.boxes import ImageBoxes, PhotoBoxes
from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.labels.maps import MapConfig
from pgnn_geo.nn import PGNN
from pgnn_geo.training.attention import AttentionModule, AttentionTrainingConfig, train_attention

CONFIG = AttentionTrainingConfig(
    epochs=1,
    completion_epochs=1,
    completion=MapConfig(size=64, source="graph", partners=1, propagate="none", output_stride=8),
    size=64,
    groups_per_batch=2,
    lr=1e-3,
    workers=0,
    precision="32-true",
)


class RandomBoxes:
    """Up to four boxes in every photo, none in the first."""

    ledger = SupervisionLedger()

    def __call__(self, image_id):
        number = int(image_id.split("_")[1])
        generator = torch.Generator().manual_seed(number)
        count = number and int(torch.randint(1, 5, (), generator=generator))
        start = 40 * torch.rand(count, 2, generator=generator)
        extent = 8 + 16 * torch.rand(count, 2, generator=generator)
        labels = torch.arange(count) % 5 + 1
        scores = torch.rand(count, generator=generator)
        return ImageBoxes(torch.cat([start, start + extent], dim=1), labels, scores)


@pytest.fixture(scope="module")
def shapes(shapes_root):
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    photos.tags = torch.ones(20, 5)  # so that no box is left out
    return photos


@pytest.fixture(scope="module")
def boxes(shapes):
    return PhotoBoxes(RandomBoxes(), shapes)


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    options = {"box_size": 3, "top_k": 3, "freeze_stages": 1, **options}
    return PGNN("vgg_tiny", 5, weights=None, output_stride=8, heads=4, **options)


@pytest.fixture
def passes(monkeypatch):
    """The boxes and classes of every pass of a network in training."""
    seen = []
    forward = PGNN.forward_features

    def logged(self, features, *arguments, **options):
        output = forward(self, features, *arguments, **options)
        if self.training:
            seen.append((options["boxes"], options["box_class"], output.batch))
        return output

    monkeypatch.setattr(PGNN, "forward_features", logged)
    return seen


@pytest.mark.parametrize("augment", ["window", "crop"])
def test_boxes_are_the_nodes_in_both_parts(shapes, boxes, tmp_path, passes, augment):
    config = replace(CONFIG, augment=augment)
    model = train_attention(tiny(), shapes, tmp_path, config, boxes=boxes)
    assert len(passes) == 20 and not model.training
    for own, labels, batch in passes:
        assert len(own) == len(labels) == 6  # two groups of three
        classes = batch.node_class.split(batch.image_batch.bincount().tolist())
        for label, nodes in zip(labels, classes, strict=True):  # the best three and background
            assert nodes.tolist() == [*label[:3].tolist(), 0]
    assert {len(own) for step in passes for own in step[0]} >= {0, 1, 2, 3}
    assert all(p.isfinite().all() for p in model.parameters())


def test_masked_features_have_boxes_as_well(shapes, boxes, tmp_path, passes):
    config = replace(CONFIG, epochs=2, completion_epochs=0, complementary="stable")
    train_attention(tiny(), shapes, tmp_path, config, boxes=boxes)
    assert len(passes) == 10 + 3 * 10  # a warm-up epoch, then each step and its two questions
    for step in range(10, 40, 3):
        first, *others = passes[step : step + 3]
        assert all(own is first[0] for own, _, _ in others)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_training_that_was_cut_off_goes_on_bit_for_bit(shapes, boxes, tmp_path, killed_at, epoch):
    whole = train_attention(tiny(), shapes, tmp_path / "a", CONFIG, boxes=boxes).state_dict()
    with killed_at(epoch, 3):
        train_attention(tiny(), shapes, tmp_path / "b", CONFIG, boxes=boxes)
    again = train_attention(tiny(), shapes, tmp_path / "b", CONFIG, boxes=boxes).state_dict()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_bfloat16_trains(shapes, boxes, tmp_path):
    config = replace(CONFIG, precision="bf16-mixed", complementary="stable")
    model = train_attention(tiny(), shapes, tmp_path, config, boxes=boxes)
    assert all(p.isfinite().all() for p in model.parameters())


def test_boxes_and_network_must_fit(shapes, boxes, tmp_path):
    with pytest.raises(InputError, match="give the photos' boxes"):
        AttentionModule(tiny(), CONFIG)
    for options in ({"layers": 0}, {"box_size": None, "top_k": None}):
        with pytest.raises(InputError, match="no use for those"):
            AttentionModule(tiny(**options), CONFIG, boxes=boxes)
    none = PhotoBoxes(lambda_source(), shapes)
    for photos, given in ((shapes.subset(range(5)), boxes), (shapes, none)):
        with pytest.raises(InputError, match="at least one; got PhotoBoxes"):
            train_attention(tiny(), photos, tmp_path, CONFIG, boxes=given)


def lambda_source():
    class Nothing:
        ledger = SupervisionLedger()

        def __call__(self, image_id):
            return ImageBoxes.empty()

    return Nothing()
