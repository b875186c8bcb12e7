import copy
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import load_mask, save_mask
from pgnn_geo.labels.mutual import mutual_complement
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn import DeepLabV2
from pgnn_geo.training import mutual
from pgnn_geo.training.mutual import MutualComplement
from pgnn_geo.training.segmentation import (
    SegmentationData,
    SegmentationModule,
    train_segmentation,
)
from pgnn_geo.training.segmentation_config import SegmentationTrainingConfig

CONFIG = SegmentationTrainingConfig(
    epochs=3,
    steps=None,
    batch_size=8,
    size=64,
    crop=64,
    scale=(1.0, 1.0),
    optimizer="adamw",
    lr=3e-3,
    head_factor=1.0,
    workers=0,
    precision="32-true",
)
BIRD = 2


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64, with_masks=True)


@pytest.fixture
def labelled(shapes, tmp_path):
    """Labels with all codes in them; most can be learnt: bright is class 1, dark background."""
    torch.manual_seed(0)
    paths = [tmp_path / "stage1" / f"{image_id}.png" for image_id in shapes.image_ids]
    for path, item in zip(paths, shapes, strict=True):
        cells = torch.nn.functional.avg_pool2d(item["image"].as_subclass(torch.Tensor).float(), 8)
        noise = torch.tensor([0, 0, 1, 2, 3, 4, 5, 255])[torch.randint(8, (8, 8))]
        coarse = (cells.mean(0) > 128).long().where(torch.rand(8, 8) < 0.7, noise)
        save_mask(path, coarse.repeat_interleave(8, 0).repeat_interleave(8, 1))
    return shapes.with_masks(paths)


def tiny(seed=0):
    torch.manual_seed(seed)
    return DeepLabV2("vgg_tiny", 5, "largefov", (2,), hidden_channels=128, weights=None)


def sees_birds(bias):
    """A network that sees class 2 everywhere, with logit `bias` against 0 for the others."""
    network = tiny()
    classifier = network.head.branches[0][-1]
    torch.nn.init.zeros_(classifier.weight)
    classifier.bias.data[BIRD] = bias
    return network


def train(network, labelled, out, config=CONFIG, callbacks=(), **options):
    data = SegmentationData(labelled, config)
    complement = MutualComplement(data, out / "labels", **options)
    train_segmentation(network, data, out, config, [complement, *callbacks])
    return complement


def images_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


class Batches(Callback):
    def __init__(self):
        self.labels = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.labels.setdefault(trainer.current_epoch, set()).update(batch["mask"].unique().tolist())


class Killed(Exception):
    pass


class Dies(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 2:
            raise Killed


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_epoch_learns_the_rewritten_labels(labelled, tmp_path, workers):
    before = images_of(tmp_path / "stage1")
    config = replace(CONFIG, lr=1e-9, workers=workers)
    batches = Batches()
    train(sees_birds(10.0), labelled, tmp_path, config, [batches], start=2)
    assert batches.labels == {0: {*range(6), 255}, 1: {*range(6), 255}, 2: {BIRD}}
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["epoch-002", "epoch-003"]
    for image_id in labelled.image_ids:
        mask = load_mask(tmp_path / "labels" / "epoch-002" / f"{image_id}.png")
        assert mask.shape == (64, 64) and (mask == BIRD).all()
    assert images_of(tmp_path / "stage1") == before


def test_with_tags_other_photos_keep_their_labels(labelled, tmp_path):
    train(sees_birds(10.0), labelled, tmp_path, replace(CONFIG, epochs=1, lr=1e-9), rule="tags")
    assert 0 < labelled.tags[:, BIRD - 1].sum() < 20
    for index, image_id in enumerate(labelled.image_ids):
        mask = load_mask(tmp_path / "labels" / "epoch-001" / f"{image_id}.png")
        old = labelled[index]["mask"].as_subclass(torch.Tensor)
        expected = torch.full_like(old, BIRD) if labelled.tags[index, BIRD - 1] else old
        assert torch.equal(mask, expected)


@pytest.mark.parametrize(("offset", "changes"), [(-1e-3, True), (1e-3, False)])
def test_confidence_gates(labelled, tmp_path, offset, changes):
    sure = torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 0.0]).softmax(0)[BIRD].item()
    options = {"confidence": sure + offset}
    train(sees_birds(2.0), labelled, tmp_path, replace(CONFIG, epochs=1, lr=1e-9), **options)
    record = json.loads((tmp_path / "labels" / "epoch-001" / "changed.json").read_text())
    birds = sum(int((item["mask"] == BIRD).sum()) for item in labelled)
    assert record["pixels"] == 20 * 64 * 64
    assert record["changed"] == (record["pixels"] - birds if changes else 0)


class Snapshots(Callback):
    """Keeps the network as it is when labels have been rewritten."""

    def __init__(self):
        self.networks = []

    def on_train_epoch_end(self, trainer, module):
        self.networks.append(copy.deepcopy(module.network).eval())


def test_each_epoch_complements_the_one_before(labelled, shapes, tmp_path):
    snapshots = Snapshots()
    ledger = SupervisionLedger(tags="csv")
    config = replace(CONFIG, size=96)
    train(tiny(), labelled, tmp_path, config, [snapshots], truth=shapes, ledger=ledger)
    labels = [item["mask"].as_subclass(torch.Tensor) for item in labelled]
    seen: set[int] = set()
    for epoch, network in enumerate(snapshots.networks, start=1):
        folder = tmp_path / "labels" / f"epoch-{epoch:03d}"
        segmenter = Segmenter(network, shapes.classes, ledger, side=96)
        changed, matrix = 0, ConfusionMatrix(5, shapes.classes)
        for index, old in enumerate(labels):
            item = shapes[index]
            photo, true = (item[name].as_subclass(torch.Tensor) for name in ("image", "mask"))
            predicted = segmenter.label(photo, precision="32-true")
            new = load_mask(folder / f"{item['image_id']}.png")
            assert torch.equal(new, mutual_complement(old, predicted))
            foreground = (old != 0) & (old != 255)
            assert ((new[foreground] != 0) & (new[foreground] != 255)).all()
            seen |= {*predicted.unique().tolist()}
            changed += int((new != old).sum())
            matrix.update(new, true)
            labels[index] = new
        record = json.loads((folder / "changed.json").read_text())
        assert (record["epoch"], record["rule"], record["changed"]) == (epoch, "literal", changed)
        assert record["scores"] == json.loads(json.dumps(matrix.compute().to_dict()))
        made = json.loads((folder / "labels.json").read_text())
        assert made == {"classes": list(shapes.classes), "supervision": ledger.to_dict()}
    assert {0, 1} <= seen  # or nothing was tested


@pytest.mark.parametrize("where", ["epoch", "labels"])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(labelled, tmp_path, monkeypatch, where):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(tiny(), labelled, whole)
    written = []

    def stops(path, mask):  # in the middle of the labels of the second epoch
        written.append(path)
        if len(written) == 30:
            raise Killed
        save_mask(path, mask)

    with monkeypatch.context() as context, pytest.raises(Killed):
        if where == "labels":
            context.setattr(mutual, "save_mask", stops)
        train(tiny(), labelled, cut, callbacks=[Dies()])
    train(tiny(seed=7), labelled, cut)
    for epoch in ("epoch-001", "epoch-002", "epoch-003"):
        first, second = (images_of(out / "labels" / epoch) for out in (whole, cut))
        assert len(first) == 20 and first == second
    states = [
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for out in (whole, cut)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_lost_labels_are_an_error(labelled, tmp_path):
    with pytest.raises(Killed):
        train(tiny(), labelled, tmp_path, callbacks=[Dies()])
    shutil.rmtree(tmp_path / "labels" / "epoch-002")
    with pytest.raises(InputError, match="labels of epoch 2 are missing"):
        train(tiny(), labelled, tmp_path)


def test_ranks_share_the_photos(labelled, tmp_path):
    module = SegmentationModule(sees_birds(10.0), CONFIG)
    module.log = lambda *args, **kwargs: None
    written = []
    for rank in (1, 0):
        strategy = SimpleNamespace(barrier=lambda name: None, reduce=lambda x, reduce_op: x)
        trainer = SimpleNamespace(
            current_epoch=0,
            global_rank=rank,
            world_size=2,
            is_global_zero=rank == 0,
            strategy=strategy,
        )
        complement = MutualComplement(SegmentationData(labelled, CONFIG), tmp_path / "labels")
        complement.folder.joinpath("epoch-001").mkdir(parents=True, exist_ok=True)
        if rank == 1:  # rank 0 writes the record once all have done their share
            (tmp_path / "labels" / "epoch-001" / "changed.json").write_text("{}")
        complement.on_train_epoch_end(trainer, module)
        written.append(len(images_of(tmp_path / "labels" / "epoch-001")))
    assert written == [10, 20]


def test_what_cannot_be_used(labelled, shapes_root):
    data = SegmentationData(labelled, CONFIG)
    untagged = copy.copy(labelled)
    untagged.tags = None
    with pytest.raises(InputError, match="start"):
        MutualComplement(data, "labels", start=0)
    with pytest.raises(InputError, match="confidence"):
        MutualComplement(data, "labels", confidence=1.5)
    with pytest.raises(InputError, match="has none"):
        MutualComplement(SegmentationData(untagged, CONFIG), "labels", rule="tags")
    with pytest.raises(InputError, match="training photos"):
        MutualComplement(data, "labels", truth=Shapes(shapes_root, "val", (20, 10), 64))


def test_from_stems_the_prediction_is_the_segmenters(labelled, tmp_path):
    """At the stride of training; the photos are as large as the view, so nothing is resized."""
    options = {"augment": "window", "scale": (1.0, 1.0), "freeze_stages": 1, "train_stride": None}
    config = replace(CONFIG, epochs=1, size=64, crop=48, lr=1e-9, **options)
    network = tiny(1)
    network.head.branches[0][-1].weight.data *= 300  # so that it sees more than one thing
    train(network, labelled, tmp_path, config, start=1)
    segmenter = Segmenter(network.eval(), labelled.classes, SupervisionLedger(), side=64)
    agreed, seen = 0.0, set()
    for item in labelled:
        labels, image = (item[name].as_subclass(torch.Tensor) for name in ("mask", "image"))
        predicted = segmenter.label(image, precision="32-true")
        expected = torch.where(predicted != 0, predicted, labels)
        mask = load_mask(tmp_path / "labels" / "epoch-001" / f"{item['image_id']}.png")
        agreed += (mask == expected).float().mean().item() / len(labelled)
        seen.update(predicted.unique().tolist())
    assert agreed > 0.995 and len(seen) > 2  # kept stems are in half precision


@pytest.mark.slow
def test_two_devices_share_the_photos_and_resume(train_on_two_devices, shapes_root, tmp_path):
    train_on_two_devices("mutual", tmp_path, shapes_root)
    cut, lost = json.loads((tmp_path / "errors.json").read_text())
    assert cut == "the second epoch" and lost.startswith("The labels of epoch 1 are missing")
    for epoch in ("epoch-001", "epoch-002"):
        folders = [tmp_path / name / "labels" / epoch for name in ("whole", "cut")]
        labels, resumed = map(images_of, folders)
        assert len(labels) == 20 and labels == resumed
        records = [json.loads((folder / "changed.json").read_text()) for folder in folders]
        assert records[0] == records[1] and records[0]["pixels"] == 20 * 64 * 64
