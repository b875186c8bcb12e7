"""`pgnn-geo segment` as its user meets it, on a small set in VOC layout."""

import io
import json
import os
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pgnn_geo.app.cli import main
from pgnn_geo.app.config import SegmentConfig, Stage2Config
from pgnn_geo.app.stage2 import labelled_photos
from pgnn_geo.datasets import Shapes, load_photo
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import load_mask, save_maps, save_mask
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn import TorchvisionSegmentation
from pgnn_geo.training.segmentation_config import RECIPES

TINY = [
    "--network.backbone=vgg_tiny",
    "--network.weights=null",
    "--network.hidden_channels=32",
    "--train.freeze_stages=1",
    "--train.size=64",
    "--train.crop=64",
    "--train.epochs=2",
    "--train.workers=0",
]
LEDGER = SupervisionLedger(tags="csv (voc train)", tuned_on_truth=("background score",))


@pytest.fixture(scope="module")
def labels(shapes_root, tmp_path_factory):
    """Pseudo-labels of the training photos: true masks, with the ledger that says so."""
    folder = tmp_path_factory.mktemp("stage1") / "labels"
    folder.mkdir()
    for path in (shapes_root / "SegmentationClass").glob("train_*.png"):
        shutil.copy(path, folder)
    record = {
        "supervision": LEDGER.to_dict(),
        "classes": Shapes(shapes_root, "train", (20, 10), 64).classes,
    }
    (folder / "labels.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def damaged(labels, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(labels, tmp_path / "damaged")


@pytest.fixture(scope="module")
def finished(shapes_root, labels, tmp_path_factory):
    """A training by the command, and what it printed."""
    before = {path: path.read_bytes() for path in labels.iterdir()}
    out = tmp_path_factory.mktemp("segment") / "out"
    arguments = [f"--labels={labels}", f"--root={shapes_root}", f"--out={out}", *TINY]
    with redirect_stdout(io.StringIO()) as printed:
        main(["segment", *arguments, "--mutual=tags"])
    assert before == {path: path.read_bytes() for path in labels.iterdir()}
    return out, [*arguments, "--mutual=tags"], printed.getvalue()


def test_it_leaves_a_segmenter_masks_pictures_and_figures(finished, shapes_root):
    out, _, printed = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 10 and metrics["split"] == "val" and metrics["mutual"] == "tags"
    assert metrics["supervision"] == LEDGER.to_list()
    val = Shapes(shapes_root, "val", num_images=(20, 10), size=64, with_masks=True)
    segmenter = Segmenter.from_pretrained(out / "segmenter")
    assert segmenter.classes == val.classes and segmenter.ledger == LEDGER
    assert segmenter.metrics == metrics["segmenter"]
    assert segmenter.side == 64
    matrix = ConfusionMatrix(5, val.classes)
    for item in val:
        photo, truth = (item[name].as_subclass(torch.Tensor) for name in ("image", "mask"))
        mask = load_mask(out / "predictions" / f"{item['image_id']}.png")
        assert torch.equal(mask, segmenter.label(photo, flip=True))
        matrix.update(mask, truth)
    assert json.loads(json.dumps(matrix.compute().to_dict())) == metrics["segmenter"]
    assert f"{100 * metrics['segmenter']['miou']:.1f}" in printed and "supervision" in printed
    assert {path.name for path in (out / "overlays").glob("*.png")} == {
        "sheet-1.png",
        "sheet-2.png",
    }


def test_labels_of_every_epoch_lie_beside_the_segmenter(finished, shapes_root):
    out, _, printed = finished
    assert "labels_miou" in printed
    train = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    for epoch in (1, 2):
        folder = out / "labels" / f"epoch-{epoch:03d}"
        record = json.loads((folder / "changed.json").read_text())
        assert record["scores"]["images"] == 20
        for image_id, tags in zip(train.image_ids, train.tags, strict=True):
            allowed = {0, *(tags.nonzero()[:, 0] + 1).tolist()}
            assert set(load_mask(folder / f"{image_id}.png").unique().tolist()) <= allowed


def test_a_finished_training_says_so_and_does_nothing(finished, monkeypatch, capsys):
    out, arguments, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    main(["segment", *arguments])
    assert "is done" in capsys.readouterr().out
    monkeypatch.chdir(out.parent)  # the same folders by other names
    labels = os.path.relpath(arguments[0].removeprefix("--labels="))
    main(["segment", *arguments, f"--labels={labels}", "--out=out"])
    assert "is done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        main(["segment", *arguments, "--train.lr=1"])
    assert "train.lr: 0.0002 there, 1.0 asked for" in capsys.readouterr().err


def test_a_training_that_was_cut_off_is_completed(finished, tmp_path, capsys):
    done, arguments, _ = finished
    out = tmp_path / "again"
    shutil.copytree(done, out)
    (out / "metrics.json").unlink()
    shutil.rmtree(out / "segmenter")
    main(["segment", *arguments, f"--out={out}"])
    assert "epoch 1/2" not in capsys.readouterr().out  # its checkpoint is read
    for name in ("metrics.json", "segmenter/model.safetensors"):
        assert (out / name).read_bytes() == (done / name).read_bytes()


def test_true_masks_are_in_the_ledger(shapes_root, tmp_path):
    out = tmp_path / "truth"
    arguments = ["--labels=truth", f"--root={shapes_root}", f"--out={out}", "--eval_split=null"]
    main(["segment", *arguments, *TINY, "--train.epochs=1", "--recipe=deeplab"])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["supervision"] == ["masks: true masks (voc train)"]
    assert "segmenter" not in metrics and not (out / "predictions").exists()
    assert Segmenter.from_pretrained(out / "segmenter").ledger.masks == "true masks (voc train)"
    config = json.loads((out / "config.json").read_text())["train"]
    assert (config["optimizer"], config["head"], config["crop"]) == ("sgd", "aspp", 64)
    assert (config["epochs"], config["steps"]) == (1, None)


def test_a_light_network_of_torchvision_learns_and_is_read_back(shapes_root, labels, tmp_path):
    out = tmp_path / "out"
    light = "--network.architecture=lraspp_mobilenet_v3_large"
    arguments = [f"--labels={labels}", f"--root={shapes_root}", f"--out={out}", light]
    tiny = ["--network.weights=null", "--train.epochs=2", "--train.size=64", "--train.crop=64"]
    main(["segment", *arguments, *tiny, "--recipe=light", "--train.workers=0"])
    metrics = json.loads((out / "metrics.json").read_text())
    segmenter = Segmenter.from_pretrained(out / "segmenter")
    assert isinstance(segmenter.network, TorchvisionSegmentation)
    assert segmenter.ledger.weights is None and segmenter.metrics == metrics["segmenter"]
    image_id = next((out / "predictions").glob("*.png")).stem
    photo = load_photo(next(Path(shapes_root).rglob(f"{image_id}.jpg")))
    assert torch.equal(load_mask(out / "predictions" / f"{image_id}.png"), segmenter.label(photo))


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["segment", *arguments, *TINY])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_bad_labels_are_one_error_before_any_work(shapes_root, damaged, tmp_path, capsys):
    (damaged / "train_00001.png").unlink()
    save_mask(damaged / "train_00002.png", torch.zeros(10, 12, dtype=torch.uint8))
    save_mask(damaged / "train_00003.png", torch.full((64, 64), 9, dtype=torch.uint8))
    (damaged / "train_00004.png").write_bytes(b"torn")
    (shapes := tmp_path / "voc").mkdir()
    shutil.copytree(shapes_root, shapes, dirs_exist_ok=True)
    (shapes / "JPEGImages" / "val_00003.jpg").unlink()
    out = tmp_path / "out"
    error = error_of(capsys, f"--labels={damaged}", f"--root={shapes}", f"--out={out}")
    for words in (
        "5 problem(s)",
        "train_00001.png' does not exist",
        "train_00002.png' is 12 x 10, its photo 64 x 64",
        "train_00003.png' has labels 9 (1 in all), want 0..5 or 255",
        "train_00004.png' cannot be read",
        "val_00003.jpg",
    ):
        assert words in error
    assert not out.exists()


def test_other_mistakes(shapes_root, damaged, tmp_path, capsys):
    arguments = [f"--root={shapes_root}", f"--out={tmp_path / 'out'}"]
    assert "no folder of label images" in error_of(capsys, "--labels=nowhere", *arguments)
    out = f"--out={tmp_path / 'other'}"
    order = "--classes=bird,fish,beetle,tree,house"
    error = error_of(capsys, f"--labels={damaged}", *arguments, out, order)
    assert "of the classes fish, bird" in error and "--classes" in error
    out = f"--out={tmp_path / 'truth'}"
    assert "not true masks" in error_of(capsys, "--labels=truth", "--mutual=tags", *arguments, out)
    architecture = "--network.architecture=fcn_resnet50"
    out = f"--out={tmp_path / 'light'}"
    error = error_of(capsys, f"--labels={damaged}", *arguments, out, architecture)
    assert "'vgg_tiny' is of deeplab_v2; fcn_resnet50 has its own" in error
    with pytest.raises(SystemExit):
        main(["segment", f"--labels={damaged}", *arguments, out, architecture])
    assert "want the recipe 'light'" in capsys.readouterr().err
    (damaged / "labels.json").write_text("{}")
    out = f"--out={tmp_path / 'record'}"
    assert "supervision" in error_of(capsys, f"--labels={damaged}", *arguments, out)


def test_labels_without_a_record_are_of_unknown_origin(shapes_root, damaged, tmp_path):

    (damaged / "labels.json").unlink()
    data = DataConfig("voc", str(shapes_root))
    network = {"backbone": "vgg_tiny", "weights": None}
    config = SegmentConfig(data=data, labels=str(damaged), network=network)
    dataset, ledger = labelled_photos(config)
    assert ledger.to_list() == ["masks: label images of unknown origin (damaged)"]
    assert len(dataset) == 20
    voc = shutil.copytree(shapes_root, tmp_path / "voc")
    shutil.rmtree(voc / "SegmentationClass")
    with pytest.raises(InputError, match="no true masks"):
        labelled_photos(replace(config, data=DataConfig("voc", str(voc)), labels="truth"))


@pytest.fixture
def with_maps(labels, shapes_root, tmp_path):
    """Labels with attention maps beside them, as `label` writes both; and the maps by photo."""
    folder = shutil.copytree(labels, tmp_path / "maps")
    train = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    chance = torch.Generator().manual_seed(0)
    maps = [torch.rand(int(tags.sum()), 8, 8, generator=chance) for tags in train.tags]
    save_maps(folder / "maps.npy", maps)
    record = json.loads((folder / "labels.json").read_text())
    record["labels"] = {"background": 0.8, "power": None}
    (folder / "labels.json").write_text(json.dumps(record))
    return folder, dict(zip(train.image_ids, maps, strict=True))


def test_uncertain_background_is_not_learnt(with_maps, shapes_root, tmp_path, capsys):
    folder, maps = with_maps
    arguments = [f"--labels={folder}", f"--root={shapes_root}", "--eval_split=null", *TINY]
    main(["segment", *arguments, f"--out={tmp_path / 'half'}"])
    learnt, ignored, pixels = tmp_path / "half" / "labels" / "certain", 0, 0
    for image_id, attention in maps.items():
        given, found = (load_mask(each / f"{image_id}.png") for each in (folder, learnt))
        kept = (255 * attention).round() / 255  # as a file of bytes holds them
        peak = torch.nn.functional.interpolate(kept[None], (64, 64), mode="bilinear")[0].amax(0)
        open_question = (given == 0) & (peak > 0.4)
        assert torch.equal(found, given.masked_fill(open_question, 255))
        ignored, pixels = ignored + int((found == 255).sum()), pixels + found.numel()
    assert 0.1 < ignored / pixels < 0.9
    assert f"{100 * ignored / pixels:.1f} % of the pixels are left out" in capsys.readouterr().out
    record = json.loads((learnt / "labels.json").read_text())
    assert SupervisionLedger.from_dict(record["supervision"]) == LEDGER
    assert json.loads((tmp_path / "half" / "metrics.json").read_text())["uncertain"] == 0.5
    metrics = json.loads((tmp_path / "half" / "metrics.json").read_text())
    assert metrics["ignored"] == ignored / pixels

    # It is these that were learnt, whole, by a training that has no maps.
    main(["segment", *arguments, f"--labels={learnt}", f"--out={tmp_path / 'given'}"])
    assert "no maps.npy beside the labels: all of their background" in capsys.readouterr().out
    main(["segment", *arguments, "--uncertain=null", f"--out={tmp_path / 'all'}"])
    assert not (tmp_path / "all" / "labels").exists()
    weights = [
        (tmp_path / name / "segmenter" / "model.safetensors").read_bytes()
        for name in ("half", "given", "all")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_maps_that_do_not_say_what_is_certain(with_maps, shapes_root, tmp_path, capsys):
    folder, maps = with_maps
    arguments = [f"--labels={folder}", f"--root={shapes_root}"]
    save_maps(folder / "maps.npy", list(maps.values())[1:])
    error = error_of(capsys, *arguments, f"--out={tmp_path / 'fewer'}")
    assert "of other photos or tags" in error and "--uncertain null" in error
    record = json.loads((folder / "labels.json").read_text())
    (folder / "labels.json").write_text(json.dumps({**record, "labels": {}}))
    error = error_of(capsys, *arguments, f"--out={tmp_path / 'rule'}")
    assert "which background score" in error and "--uncertain null" in error
    assert not (tmp_path / "fewer").exists() and not (tmp_path / "rule").exists()
    error = error_of(capsys, *arguments, "--uncertain=0", f"--out={tmp_path / 'zero'}")
    assert "'uncertain' must lie in (0, 1], got 0" in error


def test_true_masks_of_some_photos(shapes_root, labels, tmp_path, capsys):
    """Every fourth photo is learnt from its true mask, the others from labels without objects."""
    empty = shutil.copytree(labels, tmp_path / "empty")
    for path in empty.glob("*.png"):
        save_mask(path, torch.zeros(64, 64, dtype=torch.uint8))
    out = tmp_path / "out"
    arguments = [f"--labels={empty}", f"--root={shapes_root}", "--eval_split=null", *TINY]
    main(["segment", *arguments, f"--out={out}", "--true_masks=0.25"])
    truth = Shapes(shapes_root, "train", num_images=(20, 10), size=64, with_masks=True)
    drawn = {path.stem for path in (out / "labels" / "true").glob("*.png")}
    assert drawn == {truth.image_ids[i] for i in (3, 7, 11, 15, 19)}
    for i in (3, 19):
        found = load_mask(out / "labels" / "true" / f"{truth.image_ids[i]}.png")
        assert torch.equal(found, truth.read_mask(i))
    metrics = json.loads((out / "metrics.json").read_text())
    assert any(
        "true masks of 5 of 20 photos (voc train)" in each for each in metrics["supervision"]
    )

    # The same as to put the masks into a copy of the labels by hand.
    mixed = shutil.copytree(empty, tmp_path / "mixed")
    for name in drawn:
        shutil.copy(labels / f"{name}.png", mixed)
    main(["segment", *arguments, f"--labels={mixed}", f"--out={tmp_path / 'hand'}"])
    main(["segment", *arguments, f"--out={tmp_path / 'none'}"])
    capsys.readouterr()
    learnt = [
        Segmenter.from_pretrained(each / "segmenter").network.state_dict()
        for each in (out, tmp_path / "hand", tmp_path / "none")
    ]
    same = [
        all(torch.equal(learnt[0][name], other[name]) for name in learnt[0]) for other in learnt[1:]
    ]
    assert same == [True, False]

    bad = [*arguments, f"--out={tmp_path / 'bad'}"]
    assert "no photo out of 20" in error_of(capsys, *bad, "--true_masks=0.01")
    assert "must lie in [0, 1]" in error_of(capsys, *bad, "--true_masks=1.5")
    assert "want one of the two" in error_of(capsys, *bad, "--true_masks=0.5", "--mutual=tags")
    assert "is for pseudo-labels" in error_of(capsys, *bad, "--labels=truth", "--true_masks=0.5")
    (voc := tmp_path / "voc").mkdir()
    shutil.copytree(shapes_root, voc, dirs_exist_ok=True)
    (voc / "SegmentationClass" / f"{truth.image_ids[3]}.png").unlink()
    error = error_of(capsys, *bad, f"--root={voc}", "--true_masks=0.25")
    assert f"these have no mask: {truth.image_ids[3]}" in error
    shutil.rmtree(voc / "SegmentationClass")
    assert "no true masks" in error_of(capsys, *bad, f"--root={voc}", "--true_masks=0.25")
    assert not (tmp_path / "bad").exists()


def test_the_network_of_a_recipe_has_what_the_recipe_says():
    train = RECIPES["short"].changed(freeze_stages=1)
    tiny = {"backbone": "vgg_tiny", "weights": None, "hidden_channels": 8}
    network = Stage2Config(network=tiny, train=train).build_network(3)
    assert network.propagation == train.propagation == 1.0
    assert network.head.normalize and network.num_classes == 3
    assert (
        Stage2Config(network=tiny, train=train.changed(propagation=None))
        .build_network(3)
        .propagation
        is None
    )
