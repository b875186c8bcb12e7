from dataclasses import replace

import pytest
import torch

from pgnn_geo import precision
from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.nn import PGNN
from pgnn_geo.training.attention import AttentionModule, AttentionTrainingConfig, train_attention
from pgnn_geo.training.stems import group_loader, photo_view

SIZES = torch.full((20, 2), 64)
CONFIG = AttentionTrainingConfig(
    epochs=1,
    completion_epochs=0,
    size=32,
    groups_per_batch=2,
    lr=1e-3,
    workers=0,
    precision="32-true",
)


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64)


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return PGNN("vgg_tiny", 5, weights=None, output_stride=8, heads=4, **options)


def changed(model, before):
    return {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("augment", ["window", "crop"])
@pytest.mark.parametrize("layers", [0, 1])
def test_everything_but_frozen_stages_learns(shapes, tmp_path, layers, augment):
    model = tiny(layers=layers, freeze_stages=1)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    config = replace(CONFIG, augment=augment)
    train_attention(model, shapes, tmp_path, config)
    moved = changed(model, before)
    assert not any(n.startswith("backbone.stages.0") for n in moved)
    assert "decoder.weight" in moved
    assert any(n.startswith("backbone.stages.3") for n in moved)
    assert any("lin_out" in n for n in moved) == bool(layers)
    assert not model.training


def test_same_seed_same_numbers(shapes, tmp_path):
    states = [
        train_attention(tiny(), shapes, tmp_path / name, CONFIG).state_dict() for name in "ab"
    ]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("augment", ["window", "crop"])
def test_a_run_that_was_cut_off_goes_on(shapes, tmp_path, capsys, augment, killed_at):
    three = replace(CONFIG, epochs=3, augment=augment)
    whole = train_attention(tiny(), shapes, tmp_path / "whole", three).state_dict()

    with killed_at(1, 2):
        train_attention(tiny(), shapes, tmp_path / "cut", three)
    capsys.readouterr()
    resumed = train_attention(tiny(seed=5), shapes, tmp_path / "cut", three)
    out = capsys.readouterr().out
    assert "epoch 2/3" in out and "epoch 1/3" not in out
    checkpoint = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3 * 10  # no step was done twice
    assert not resumed.training
    assert not changed(resumed, whole)  # bit for bit


def test_hyper_parameters_out_of_range():
    with pytest.raises(InputError, match="epochs=0"):
        AttentionTrainingConfig(epochs=0)


def test_precision_follows_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert precision.resolve_precision("auto") == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precision.resolve_precision("auto") == "32-true"
    assert precision.resolve_precision("bf16-mixed") == "bf16-mixed"


def test_what_photos_are_looked_up_by_stays_here(shapes, tmp_path):
    """A device that holds no values stands for a GPU, from which they would be waited for."""
    for augment, place in (("window", "window"), ("crop", "crop")):
        config = replace(CONFIG, augment=augment, size=32, groups_per_batch=2, workers=0)
        batch = next(iter(group_loader(tiny().backbone, shapes, tmp_path, config)))
        module = AttentionModule(tiny(), CONFIG)
        moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
        assert moved.keys() == batch.keys()
        assert {n for n, v in moved.items() if getattr(v, "device", v) == torch.device("cpu")} == {
            *("index", "flip", place)
        }
        for found, want in zip(photo_view(moved, SIZES), photo_view(batch, SIZES), strict=True):
            assert torch.equal(found, want)


def test_bfloat16_trains(shapes, tmp_path):
    config = replace(CONFIG, precision="bf16-mixed")
    model = train_attention(tiny(), shapes, tmp_path, config)
    assert all(p.isfinite().all() for p in model.parameters())
