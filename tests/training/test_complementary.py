import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.labels import AttentionStore
from pgnn_geo.losses import SoftComplementaryLoss
from pgnn_geo.nn import PGNN
from pgnn_geo.nn.decoder import activate
from pgnn_geo.training import attention
from pgnn_geo.training.attention import AttentionTrainingConfig, train_attention
from pgnn_geo.training.complementary import PreviousMaps, complementary_terms
from pgnn_geo.training.stems import photo_view

CONFIG = AttentionTrainingConfig(
    epochs=3,
    completion_epochs=0,
    complementary="stable",
    size=64,
    groups_per_batch=2,
    lr=1e-3,
    workers=0,
    precision="32-true",
)
TERMS = {
    *("destroy", "preserve", "area", "smoothness", "classification", "backbone_classification"),
}


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64)


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return PGNN("vgg_tiny", 5, weights=None, output_stride=8, heads=4, **options)


@pytest.fixture
def steps(monkeypatch):
    """The epoch, the loss and the logged terms of every step."""
    happened = []
    step, log = attention.AttentionModule.training_step, attention.AttentionModule.log
    terms = {}

    def logged(self, name, value, **options):
        terms[name] = float(value)
        log(self, name, value, **options)

    def logged_step(self, batch, batch_idx):
        terms.clear()
        loss = step(self, batch, batch_idx)
        happened.append((self.current_epoch, loss.item(), dict(terms)))
        return loss

    monkeypatch.setattr(attention.AttentionModule, "log", logged)
    monkeypatch.setattr(attention.AttentionModule, "training_step", logged_step)
    return happened


def check(model, steps, mode, config):
    """Nothing is NaN; the loss has its lower bound, and none of its terms has run away."""
    assert all(p.isfinite().all() for p in model.parameters())
    for epoch, loss, terms in steps:
        assert all(map(math.isfinite, [loss, *terms.values()]))
        assert set(terms) == {"loss", *TERMS}
        if epoch < config.complementary_loss["warmup"]:
            assert terms["destroy"] == terms["preserve"] == terms["area"] == 0
        elif mode == "paper":
            assert terms["destroy"] < 0
        else:
            assert terms["destroy"] > 0
        if mode != "paper":
            assert 0 <= loss < 10


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("mode", ["stable", "paper", "erase"])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))]
)
def test_trains_without_nan(shapes, tmp_path, steps, mode, precision, seed):
    config = replace(CONFIG, complementary=mode, precision=precision, seed=seed)
    model = train_attention(tiny(seed), shapes, tmp_path, config)
    assert len(steps) == 30
    check(model, steps, mode, config)
    assert not (tmp_path / "previous").exists()


@pytest.mark.parametrize("mode", ["stable", "erase"])
@pytest.mark.parametrize("augment", ["window", "crop"])
def test_without_a_graph_and_of_crops(shapes, tmp_path, steps, mode, augment):
    config = replace(CONFIG, complementary=mode, augment=augment, epochs=2)
    model = train_attention(tiny(layers=0, freeze_stages=1), shapes, tmp_path, config)
    check(model, steps, mode, config)


def test_weights_of_zero_are_plain_classification(shapes, tmp_path, steps):
    zero = {"weights": (0, 0, 0, 1), "area": 0}
    train_attention(tiny(), shapes, tmp_path / "zero", replace(CONFIG, complementary_loss=zero))
    losses = [loss for _, loss, _ in steps]
    steps.clear()
    train_attention(tiny(), shapes, tmp_path / "off", replace(CONFIG, complementary="off"))
    assert [loss for _, loss, _ in steps] == losses


def test_the_second_part_has_another_loss(shapes, tmp_path, steps):
    config = replace(CONFIG, epochs=2, completion_epochs=1, complementary="erase")
    output = io.StringIO()
    console = Console(file=output, width=400)
    train_attention(tiny(activation="softmax"), shapes, tmp_path, config, console=console)
    assert [set(terms) for _, _, terms in steps[20:]] == [{"loss"}] * 10
    lines = output.getvalue().splitlines()
    assert len(lines) == 3 and "destroy" in lines[1] and "destroy" not in lines[2]


class Batch:
    """A real step's arguments."""

    def __init__(self, seed=0, **options):
        self.model = tiny(seed, **options)
        torch.nn.init.normal_(self.model.blocks[0].attention.lin_out.weight, std=0.05)
        generator = torch.Generator().manual_seed(seed)
        self.batch = {
            "image": torch.rand(6, 3, 64, 64, generator=generator),
            "tags": torch.eye(5)[[0, 0, 0, 1, 1, 1]],
            "group": torch.tensor([0, 0, 0, 1, 1, 1]),
            "index": torch.arange(6),
            "crop": torch.tensor([[0.0, 0, 64, 64]] * 6),
            "flip": torch.tensor([False] * 6),
        }
        self.features = self.model.backbone(self.batch["image"])
        self.output = self.model.forward_features(self.features, self.batch["group"])

    def terms(self, mode, previous=None, **options):
        loss = SoftComplementaryLoss(mode, warmup=0, **options)
        arguments = (self.batch, self.features, self.output, 1, previous, 3)
        return complementary_terms(loss, self.model, *arguments)


def test_masked_features_go_through_the_graph():
    step = Batch()
    terms = step.terms("stable")
    maps = activate(step.output.scores, "relu", step.batch["tags"]).amax(dim=1, keepdim=True)
    mask = torch.sigmoid(10 * (maps - 0.5))
    model, group, own = step.model, step.batch["group"], [(i, int(i > 2)) for i in range(6)]
    erased = model.forward_features(step.features * (1 - mask), group).logits
    kept = model.forward_features(step.features * mask, group).logits
    destroy = torch.stack([-(1 - erased[i].sigmoid()).log() for i in own]).mean()
    preserve = torch.stack([-kept[i].sigmoid().log() for i in own]).mean()
    torch.testing.assert_close(terms.destroy, destroy)
    torch.testing.assert_close(terms.preserve, preserve)


def test_the_passes_of_stable_teach_the_map_alone():
    step, again = Batch(), Batch()
    destroy = step.terms("stable").destroy
    (through_map,) = torch.autograd.grad(destroy, step.output.scores, retain_graph=True)
    destroy.backward()
    again.output.scores.backward(through_map)
    for a, b in zip(step.model.parameters(), again.model.parameters(), strict=True):
        assert a.requires_grad and (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)
    assert step.model.decoder.weight.grad.abs().max() > 0


class FakeTrainer:
    """As much of a trainer as the callback asks."""

    is_global_zero = True

    def __init__(self, epoch):
        self.current_epoch = epoch
        self.strategy = self

    def barrier(self):
        pass


def run_epoch(previous, epoch, write):
    trainer = FakeTrainer(epoch)
    previous.on_train_epoch_start(trainer, None)
    write(previous)
    previous.on_train_epoch_end(trainer, None)


def test_maps_of_an_epoch_are_read_in_the_next(shapes, tmp_path):
    previous = PreviousMaps(shapes, 4, tmp_path / "p", policy="max")
    image = shapes.image_ids[0]

    def write(value):
        return lambda p: p.write.write([image], torch.full((1, 5, 8, 8), value))

    def peak():
        return previous.read.read([image], size=(1, 1)).max().item()

    seen = []
    for epoch, value in enumerate((0.4, 0.8, 0.2)):
        run_epoch(previous, epoch, lambda p, v=value: (seen.append(peak()), write(v)(p)))
    assert seen == pytest.approx([0, 0.4, 0.8], abs=0.01)
    # Cut off in epoch 3 and resumed there; then the checkpoint of epoch 2 was not written either.
    previous.on_train_epoch_start(FakeTrainer(3), None)
    write(1.0)(previous)
    for epoch in (3, 2):
        previous.on_train_epoch_start(FakeTrainer(epoch), None)
        assert peak() == pytest.approx(0.8, abs=0.01)
    previous.on_train_epoch_start(FakeTrainer(4), None)
    assert previous.read is None and previous.write is None
    previous.on_train_end(FakeTrainer(4), None)
    assert not (tmp_path / "p").exists()


def test_erase_masks_what_was_found_before_and_keeps_what_it_finds(shapes, tmp_path):
    step = Batch()
    tagged = shapes.with_transform(None)
    tagged.tags = torch.ones_like(shapes.tags)
    previous = PreviousMaps(tagged, 3, tmp_path)
    left = torch.zeros(6, 5, 8, 8)
    left[..., :4] = 1
    run_epoch(previous, 0, lambda p: p.write.write(torch.arange(6), left))
    previous.on_train_epoch_start(FakeTrainer(1), None)
    terms = step.terms("erase", previous)
    mask = torch.sigmoid(10 * (left[:, :1] - 0.5))
    logits = step.model.forward_features(step.features * (1 - mask), step.batch["group"]).logits
    own = torch.stack([logits[i, int(i > 2)] for i in range(6)])
    torch.testing.assert_close(terms.destroy, -own.sigmoid().log().mean(), rtol=1e-2, atol=1e-3)
    terms.destroy.backward()
    assert step.model.backbone.stages[0][0].weight.grad.abs().max() > 0  # features learn

    previous.on_train_epoch_end(FakeTrainer(1), None)
    store = AttentionStore.open(previous.after(2) / "maps.bin")
    maps = store.read(torch.arange(6), size=(8, 8))
    found = activate(step.output.scores, "relu", step.batch["tags"])
    anchors, partners = [0, 3], [1, 2, 4, 5]
    torch.testing.assert_close(maps[anchors], found[anchors], rtol=0, atol=5e-3)
    torch.testing.assert_close(maps[partners], left[partners], rtol=0, atol=5e-3)


def test_every_photo_is_kept_once_an_epoch(shapes, tmp_path, monkeypatch):
    written = []
    write = AttentionStore.write

    def logged(self, rows, *arguments):
        written.extend(rows.tolist())
        write(self, rows, *arguments)

    monkeypatch.setattr(AttentionStore, "write", logged)
    config = replace(CONFIG, complementary="erase", epochs=2)
    train_attention(tiny(), shapes, tmp_path, config)
    assert sorted(written[:20]) == sorted(written[20:]) == list(range(20))


@pytest.mark.parametrize("policy", ["last", "max", "ema"])
def test_a_run_that_erases_goes_on_bit_for_bit(shapes, tmp_path, killed_at, policy):
    loss = {"policy": policy}
    config = replace(CONFIG, complementary="erase", complementary_loss=loss)
    whole = train_attention(tiny(), shapes, tmp_path / "whole", config).state_dict()

    with killed_at(2, 3):
        train_attention(tiny(), shapes, tmp_path / "cut", config)
    resumed = train_attention(tiny(seed=5), shapes, tmp_path / "cut", config).state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_views_of_windows_and_crops():
    sizes = torch.tensor([[100, 200], [60, 40]])
    batch = {
        "index": torch.tensor([1, 0]),
        "window": torch.tensor([[0.0, 0.5, 0.5, 1.0], [0.25, 0.0, 1.0, 0.5]]),
        "flip": torch.tensor([True, False]),
    }
    index, boxes, flip = photo_view(batch, sizes)
    assert boxes.tolist() == [[0, 30, 20, 60], [50, 0, 200, 50]]
    assert index.tolist() == [1, 0] and flip.tolist() == [True, False]


@pytest.mark.parametrize("wrong", [{"threshold": "none"}, {"weights": (-1.0, 1, 1, 1)}])
def test_bad_parameters_are_told_before_any_work(shapes, tmp_path, wrong):
    config = replace(CONFIG, complementary_loss=wrong)
    with pytest.raises(InputError, match=r"threshold=|weights="):
        train_attention(tiny(), shapes, tmp_path, config)
    with pytest.raises(InputError, match=r"omega='steep'.*want float"):
        replace(CONFIG, complementary_loss={"omega": "steep"})
    with pytest.raises(InputError, match=r"policy='mean'.*'last', 'max', 'ema'"):
        replace(CONFIG, complementary_loss={"policy": "mean"})
    assert not (tmp_path / "stems").exists()
