from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.labels import AttentionStore
from pgnn_geo.labels.maps import MapConfig, attention_maps
from pgnn_geo.nn import PGNN
from pgnn_geo.training import attention, completion
from pgnn_geo.training.attention import AttentionTrainingConfig, train_attention

MAPS = MapConfig(size=64, source="backbone", activation="relu", propagate="within", output_stride=8)
CONFIG = AttentionTrainingConfig(
    epochs=1,
    completion_epochs=2,
    completion=MAPS,
    foreground=0.6,
    size=64,
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
    options = {"freeze_stages": 1, **options}
    return PGNN("vgg_tiny", 5, weights=None, output_stride=8, heads=4, **options)


@pytest.fixture
def steps(monkeypatch):
    """What happens in training, in order: (epoch, loss, learning rate) of steps, and events."""
    return _logged(monkeypatch, [])


@pytest.fixture(scope="module")
def uncut(shapes, tmp_path_factory):
    """A whole training by `CONFIG`: its model, what happened, how maps were made of it."""
    configs = []
    with pytest.MonkeyPatch.context() as patch:
        happened = _logged(patch, configs)
        model = train_attention(tiny(), shapes, tmp_path_factory.mktemp("uncut"), CONFIG)
    return SimpleNamespace(model=model, steps=happened, configs=configs)


def _logged(monkeypatch, configs):
    happened = []
    step, maps = attention.AttentionModule.training_step, completion.attention_maps

    def logged_step(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        happened.append((self.current_epoch, loss.item(), rate))
        return loss

    def logged_maps(model, dataset, config, *arguments, **options):
        happened.append("references")
        configs.append(config)
        return maps(model, dataset, config, *arguments, **options)

    monkeypatch.setattr(attention.AttentionModule, "training_step", logged_step)
    monkeypatch.setattr(completion, "attention_maps", logged_maps)
    return happened


def epochs(steps):
    return [step if isinstance(step, str) else step[0] for step in steps]


@pytest.mark.parametrize("layers", [0, 1])
def test_references_come_once_before_the_second_part_which_learns_them(
    shapes, tmp_path, steps, layers
):
    config = replace(CONFIG, completion_epochs=4)
    model = train_attention(tiny(layers=layers), shapes, tmp_path, config)
    assert epochs(steps) == [0] * 10 + ["references"] + [e for e in (1, 2, 3, 4) for _ in range(10)]
    losses = [loss for _, loss, _ in steps[11:]]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert all(p.isfinite().all() for p in model.parameters()) and not model.training
    assert not list(tmp_path.glob("**/.*unfinished*"))


def test_references_are_the_completed_maps_in_the_geometry_of_the_photos(
    shapes, tmp_path, monkeypatch
):
    states = []
    infer = completion.MapCompletion._maps

    def copied(self, model):
        assert model.training
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        maps = infer(self, model)
        assert model.training and model.backbone.output_stride == 8
        return maps

    monkeypatch.setattr(completion.MapCompletion, "_maps", copied)
    train_attention(tiny(), shapes, tmp_path, CONFIG)
    model = tiny(seed=3)
    model.load_state_dict(states[0])
    expected = attention_maps(model, shapes, replace(MAPS, precision="32-true"))
    store = AttentionStore.open(tmp_path / "references" / "maps.bin")
    assert store.image_ids == shapes.image_ids
    assert store.sizes.tolist() == [[64, 64]] * 20
    for row, tags in enumerate(shapes.tags.bool()):
        maps = store.read([row], size=(8, 8))[0]
        torch.testing.assert_close(maps[tags], expected[row], rtol=0, atol=0.02)
        assert maps[~tags].eq(0).all()


def test_the_learning_rate_starts_anew(uncut):
    rates = torch.tensor([step[2] for step in uncut.steps if step != "references"])
    first = 1e-3 * (1 - torch.arange(10) / 10) ** 0.9
    second = 1e-3 * (1 - torch.arange(20) / 20) ** 0.9
    torch.testing.assert_close(rates, torch.cat([first, second]))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("killed_in", [1, 2])
def test_a_run_killed_in_the_second_part_goes_on_bit_for_bit(
    uncut, shapes, tmp_path, steps, killed_at, killed_in, workers
):
    config, whole = replace(CONFIG, workers=workers), uncut.model.state_dict()
    with killed_at(killed_in, 3):
        train_attention(tiny(), shapes, tmp_path / "cut", config)
    stamp = (tmp_path / "cut" / "references" / "maps.bin").stat().st_mtime_ns
    before = uncut.steps[: 1 + 10 * killed_in]
    assert steps[: len(before)] == before
    steps.clear()

    resumed = train_attention(tiny(seed=5), shapes, tmp_path / "cut", config).state_dict()
    assert (tmp_path / "cut" / "references" / "maps.bin").stat().st_mtime_ns == stamp
    assert steps == uncut.steps[len(before) :]  # the same losses, at the same rates
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    checkpoint = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 30


def test_a_run_killed_while_it_writes_references_writes_them_anew(shapes, tmp_path, monkeypatch):
    def dies(*arguments, **options):
        raise KeyError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(AttentionStore, "flush", dies)
        with pytest.raises(KeyError):
            train_attention(tiny(), shapes, tmp_path, CONFIG)
    assert not (tmp_path / "references").exists()
    train_attention(tiny(), shapes, tmp_path, CONFIG)
    store = AttentionStore.open(tmp_path / "references" / "maps.bin")
    assert store.written(shapes.image_ids).all()


def test_without_completion_it_is_training_on_tags(uncut, shapes, tmp_path, steps):
    train_attention(tiny(), shapes, tmp_path, replace(CONFIG, completion_epochs=0))
    assert epochs(steps) == [0] * 10 and not (tmp_path / "references").exists()
    assert [step[1] for step in uncut.steps[:10]] == [loss for _, loss, _ in steps]


def test_completion_follows_the_precision_of_training(uncut):
    assert MAPS.precision == "auto"
    assert [config.precision for config in uncut.configs] == ["32-true"]


@pytest.mark.parametrize("layers", [0, 1])
def test_crops_of_the_photo_and_bfloat16(shapes, tmp_path, layers):
    config = replace(CONFIG, augment="crop", precision="bf16-mixed", completion_epochs=1)
    model = train_attention(tiny(layers=layers), shapes, tmp_path, config)
    assert all(p.isfinite().all() for p in model.parameters())


def test_classes_of_nodes_come_from_the_references(uncut, shapes, tmp_path, monkeypatch):
    seen = []
    forward = PGNN.forward_features

    def logged(self, features, group=None, tags=None, node_class=None, *arguments):
        if self.training:
            seen.append(node_class)
        return forward(self, features, group, tags, node_class, *arguments)

    config = replace(CONFIG, node_classes="references")
    with monkeypatch.context() as patch:
        patch.setattr(PGNN, "forward_features", logged)
        model = train_attention(tiny(class_embedding="attention"), shapes, tmp_path, config)
    assert model.node_classes == model.config["node_classes"] == "maps"
    assert all(n is None for n in seen[:10]) and all(n is not None for n in seen[10:])
    classes = torch.cat(seen[10:])
    assert len(classes) == 2 * 20 * 3 * 16 and 0 < (classes > 0).sum() < len(classes)
    relation = model.blocks[0].attention.class_module.weight
    assert relation.abs().max() > 0  # it has learned from them
    assert uncut.model.node_classes == "none"


def test_classes_of_nodes_need_a_grid_and_references():
    config = replace(CONFIG, node_classes="references")
    with pytest.raises(InputError, match="grid"):
        attention.AttentionModule(tiny(box_size=3), config)
    with pytest.raises(InputError, match="completion_epochs"):
        attention.AttentionModule(tiny(), replace(config, completion_epochs=0))
    attention.AttentionModule(tiny(layers=0), replace(config, completion_epochs=0))


@pytest.mark.parametrize(("completion_epochs", "activation"), [(0, "relu"), (1, "softmax")])
def test_a_trained_network_knows_how_its_scores_become_maps(
    shapes, tmp_path, completion_epochs, activation
):
    config = replace(CONFIG, completion_epochs=completion_epochs)
    for _ in range(2):  # the second time there is nothing left to train
        model = train_attention(tiny(), shapes, tmp_path, config)
        assert model.activation == model.config["activation"] == activation
