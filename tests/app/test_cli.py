"""The command line as its user meets it, on a small set in VOC layout."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pgnn_geo.app.cli import main
from pgnn_geo.datasets import Shapes
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.io.masks import load_mask
from pgnn_geo.labels import (
    MapConfig,
    PixelAdaptiveRefinement,
    attention_maps,
    background_score,
)
from pgnn_geo.training.segmentation import SegmentationModule

TINY = [
    "--network.backbone=vgg_tiny",
    "--network.weights=null",
    "--network.freeze_stages=0",
    "--network.output_stride=8",
    "--train.size=64",
    "--train.epochs=1",
    "--train.completion_epochs=1",
    "--train.workers=0",
]
MAPS = ["--maps.size=64", "--maps.partners=1"]
STAGE2 = [
    "--segment_network.backbone=vgg_tiny",
    "--segment_network.weights=null",
    "--segment_network.hidden_channels=32",
    "--segment_train.freeze_stages=1",
    "--segment_train.size=64",
    "--segment_train.crop=64",
    "--segment_train.epochs=2",
    "--segment_train.workers=0",
]
#: As the figures of these tests were made: both models, labels as they are.
RECIPE = ["--recipe=trained", "--baseline=true", "--labels.refine=none"]
RUN = [*RECIPE, *TINY, *MAPS, *STAGE2]


@pytest.fixture
def voc(shapes_root, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(shapes_root, tmp_path / "voc")


@pytest.fixture(scope="module")
def finished(shapes_root, tmp_path_factory):
    """A run by the installed command, as a process of its own."""
    out = tmp_path_factory.mktemp("run")
    command = [
        sys.executable,
        "-m",
        "pgnn_geo.app.cli",
        "run",
        f"--root={shapes_root}",
        f"--out={out}",
    ]
    result = subprocess.run([*command, *RUN], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_run_leaves_masks_pictures_and_figures(finished, shapes_root):
    out, printed = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 20 and metrics["split"] == "train"
    assert metrics["supervision"] == ["tags: csv (voc train)"]
    train = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    for model in ("cam", "pgnn"):
        assert {"miou", "precision", "recall"} <= metrics[model].keys()
        assert f"{100 * metrics[model]['miou']:.1f}" in printed
        for image_id, tags in zip(train.image_ids, train.tags, strict=True):
            path = out / model / "labels" / f"{image_id}.png"
            with Image.open(path) as image:
                assert image.mode == "P" and image.size == (64, 64)
            allowed = {0, *(tags.nonzero()[:, 0] + 1).tolist()}
            assert set(load_mask(path).unique().tolist()) <= allowed
        text = (out / model / "labels" / "review.csv").read_text()
        review = list(csv.DictReader(text.splitlines()))
        sure = [float(row["confidence"]) for row in review]
        assert len(review) == train.tags.sum() and sure == sorted(sure)
        for row in review:
            mask = load_mask(out / model / "labels" / f"{row['image']}.png")
            share = (mask == train.classes.index(row["class"]) + 1).float().mean()
            assert float(row["area"]) == pytest.approx(float(share), abs=6e-4)
    assert [p.name for p in sorted((out / "overlays").glob("*.*g"))] == [
        f"sheet-{i}.png" for i in (1, 2, 3)
    ]
    assert not (out / "stems").exists() and not list(out.glob(".tmp-*"))


def test_run_trains_a_segmenter_on_the_labels(finished):
    out, printed = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["pseudo_labels"] == metrics["pgnn"] and metrics["pgnn"]["images"] == 20
    assert metrics["segmentation"]["images"] == 10 and metrics["segmentation_split"] == "val"
    assert metrics["segmentation"].keys() == metrics["pgnn"].keys()
    assert f"{100 * metrics['segmentation']['miou']:.1f}" in printed
    assert printed.index("pseudo-labels, train") < printed.index("segmentation, val")
    segmenter = Segmenter.from_pretrained(out / "segmentation" / "segmenter")
    assert segmenter.metrics == metrics["segmentation"]
    # Its ledger is that of the labels and of its own weights, of which there are none here.
    assert segmenter.ledger.to_list() == ["tags: csv (voc train)"]
    config = json.loads((out / "segmentation" / "config.json").read_text())
    assert config["labels"] == "../pgnn/labels" and config["train"]["epochs"] == 2
    assert json.loads((out / "config.json").read_text())["segment"]["train"] == config["train"]
    record = json.loads((out / "pgnn" / "labels" / "labels.json").read_text())
    assert record["classes"] == metrics["classes"]


def test_a_finished_run_says_so_and_does_nothing(finished, shapes_root, capsys):
    out, _ = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    main(["run", f"--root={shapes_root}", f"--out={out}", *RUN])
    printed = capsys.readouterr().out
    assert "is done" in printed and "P-GNN IoU" in printed and "segmentation, val" in printed
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


def test_a_run_that_was_cut_off_is_completed_from_what_is_there(finished, shapes_root, tmp_path):
    done, _ = finished
    out = tmp_path / "again"
    shutil.copytree(done, out)
    for lost in ("metrics.json", "pgnn/labels/labels.json", "pgnn/labels/train_00003.png"):
        (out / lost).unlink()
    model = (out / "pgnn" / "model").stat().st_mtime_ns
    main(["run", f"--root={shapes_root}", f"--out={out}", *RUN])
    assert (out / "pgnn" / "model").stat().st_mtime_ns == model
    first, second = (json.loads((f / "metrics.json").read_text()) for f in (done, out))
    assert first == second


def test_a_run_that_was_cut_off_in_stage_2_is_completed(
    finished, shapes_root, tmp_path, monkeypatch, capsys
):
    done, _ = finished
    out = tmp_path / "again"
    shutil.copytree(done, out, ignore=shutil.ignore_patterns("segmentation", "metrics.json"))
    command = ["run", f"--root={shapes_root}", f"--out={out}", *RUN]
    step = SegmentationModule.training_step

    def dies(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "training_step", dies)
        with pytest.raises(KeyError, match="killed"):
            main(command)
    assert "epoch 1/2" in capsys.readouterr().out
    assert not (out / "metrics.json").exists()
    main(command)
    printed = capsys.readouterr().out
    assert "epoch 2/2" in printed and "epoch 1/2" not in printed
    for name in ("metrics.json", "segmentation/metrics.json"):
        assert (out / name).read_bytes() == (done / name).read_bytes()
    name = "segmentation/segmenter/model.safetensors"
    assert (out / name).read_bytes() == (done / name).read_bytes()


def test_another_configuration_does_not_touch_a_run(finished, shapes_root, capsys):
    out, _ = finished
    with pytest.raises(SystemExit) as stop:
        main(["run", f"--root={shapes_root}", f"--out={out}", *RUN, "--train.seed=7"])
    assert stop.value.code == 2
    assert "train.seed: 0 there, 7 asked for" in capsys.readouterr().err


def test_label_and_evaluate_by_themselves(finished, shapes_root, tmp_path, capsys):
    out, _ = finished
    labels, figures = tmp_path / "new" / "labels", tmp_path / "scores.json"
    data = [f"--root={shapes_root}"]
    main(["label", f"--checkpoint={out / 'pgnn' / 'model'}", *data, f"--out={labels}", *MAPS])
    main(["evaluate", f"--labels={labels}", *data, f"--out={figures}"])
    metrics = json.loads((out / "metrics.json").read_text())["pgnn"]
    assert json.loads(figures.read_text())["miou"] == pytest.approx(metrics["miou"], abs=1e-6)
    assert "mean, all" in capsys.readouterr().out
    with pytest.raises(SystemExit):  # another model may not write among these
        main(["label", f"--checkpoint={out / 'cam' / 'model'}", *data, f"--out={labels}", *MAPS])
    assert "made from something else (model" in capsys.readouterr().err


def test_label_takes_the_defaults_of_the_model(finished, shapes_root, tmp_path):
    out, _ = finished
    command = ["label", f"--checkpoint={out / 'cam' / 'model'}", f"--root={shapes_root}", *MAPS]
    main([*command, f"--out={tmp_path / 'cam'}"])
    for path in (out / "cam" / "labels").iterdir():
        assert path.read_bytes() == (tmp_path / "cam" / path.name).read_bytes()
    own = [f"--out={tmp_path / 'own'}", "--maps.propagate=within", "--labels.background=0.3"]
    main([*command, *own])
    record = json.loads((tmp_path / "own" / "labels.json").read_text())
    maps, labels = record["maps"], record["labels"]
    assert (maps["propagate"], maps["output_stride"], maps["size"]) == ("within", 8, 64)
    assert labels["background"] == 0.3


def test_label_refines(finished, shapes_root, tmp_path):
    out, _ = finished
    checkpoint, folder = out / "pgnn" / "model", tmp_path / "labels"
    options = ["--labels.refine=par", "--labels.refine_dilations=[1,3]", "--labels.background=0.4"]
    command = ["label", f"--checkpoint={checkpoint}", f"--root={shapes_root}", f"--out={folder}"]
    main([*command, *MAPS, *options, "--labels.refine_iterations=3"])
    train = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    maps = attention_maps(
        load_attention_model(checkpoint).model, train, MapConfig(size=64, partners=1)
    )
    refine, changed = PixelAdaptiveRefinement(iterations=3, dilations=(1, 3), scale=0.5), 0
    for item, attention in zip(train, maps, strict=True):
        attention = torch.nn.functional.interpolate(attention[None], (64, 64), mode="bilinear")[0]
        scores = torch.cat([background_score(attention, 0.4), attention])
        pixels = item["image"].as_subclass(torch.Tensor).float() / 255
        labels = torch.cat([torch.zeros(1), item["tags"].nonzero()[:, 0] + 1])
        name = f"{item['image_id']}.png"
        mask = load_mask(folder / name)
        assert torch.equal(mask, labels[refine(pixels[None], scores[None])[0].argmax(0)].byte())
        changed += int((mask != labels[scores.argmax(0)].byte()).sum())
    assert changed > 0
    assert json.loads((folder / "labels.json").read_text())["labels"] == {
        "background": 0.4,
        "power": None,
        "refine": "par",
        "refine_iterations": 3,
        "refine_dilations": [1, 3],
        "refine_scale": 0.5,
    }


def test_train_the_baseline(shapes_root, tmp_path, capsys):
    main(["train", "--model=cam", f"--root={shapes_root}", f"--out={tmp_path / 'cam'}", *TINY])
    content = json.loads((tmp_path / "cam" / "model" / "config.json").read_text())
    assert content["network"]["layers"] == 0
    assert content["classes"] == ["fish", "bird", "beetle", "tree", "house"]
    assert content["supervision"]["tags"] == "csv (voc train)"


def test_train_with_the_patch_graph(shapes_root, tmp_path, capsys):
    command = ["train", f"--root={shapes_root}", f"--out={tmp_path / 'grid'}", *TINY]
    with pytest.raises(SystemExit):
        main([*command, "--network.grid=2"])
    assert "--network.grid is of the patch graph" in capsys.readouterr().err
    main([*command, "--network.grid=2", "--patches=grid"])
    model = load_attention_model(tmp_path / "grid" / "model").model
    assert model.builder.grid == 2 and len(model.blocks) == 1


def test_a_folder_of_ones_own_photos(shapes_root, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(shapes_root / "JPEGImages", photos)
    rows = (shapes_root / "image_labels.csv").read_text()
    (photos / "labels.csv").write_text(rows)
    out = tmp_path / "run"
    main(["run", "--data=folder", f"--root={photos}", f"--out={out}", *RUN])
    printed = capsys.readouterr().out
    assert "No true masks" in printed
    assert len(list((out / "pgnn" / "labels").glob("*.png"))) == 30
    metrics = json.loads((out / "metrics.json").read_text())
    assert not {"cam", "pgnn", "pseudo_labels", "segmentation"} & metrics.keys()
    segmenter = Segmenter.from_pretrained(out / "segmentation" / "segmenter")
    assert segmenter.classes == tuple(sorted(segmenter.classes))  # the order of a folder's classes


def test_a_run_may_end_with_the_labels(shapes_root, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--train.completion_epochs=0", "--segment=off"]
    main(["run", *RECIPE, f"--root={shapes_root}", f"--out={out}", *TINY, *MAPS, *options])
    metrics = json.loads((out / "metrics.json").read_text())
    assert "pgnn" in metrics and not {"pseudo_labels", "segmentation"} & metrics.keys()
    assert not (out / "segmentation").exists()
    assert "supervision: tags: csv" in capsys.readouterr().out


def test_mistakes_of_stage_2_come_before_stage_1(voc, tmp_path, capsys, monkeypatch):
    (voc / "JPEGImages" / "val_00003.jpg").unlink()
    monkeypatch.setattr("pgnn_geo.labels.refine.find_spec", lambda name: None)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["run", f"--root={voc}", f"--out={out}", *RUN, "--labels.refine=crf"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "2 problem(s)" in error and "val_00003.jpg" in error and "pgnn-geo[crf]" in error
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(SystemExit):
        main(["run", f"--root={voc}", f"--out={tmp_path / 'other'}", *RUN])
    error = capsys.readouterr().err
    assert "split 'val'" in error and "eval_split" in error
    assert not (out / "cam").exists()


def damage_truncated(root):
    path = root / "JPEGImages" / "train_00004.jpg"
    path.write_bytes(path.read_bytes()[:500])
    return "train_00004.jpg"


def damage_missing(root):
    (root / "JPEGImages" / "train_00002.jpg").unlink()
    return "train_00002.jpg"


def damage_untagged(root):
    path = root / "image_labels.csv"
    lines = path.read_text().splitlines()
    lines[1] = lines[1].split(",")[0] + ","
    path.write_text("\n".join(lines))
    return "train_00000 has no tags"


def damage_missing_row(root):
    path = root / "image_labels.csv"
    path.write_text("\n".join(x for x in path.read_text().splitlines() if "train_00003" not in x))
    return "train_00003"


def damage_mask_size(root):
    path = root / "SegmentationClass" / "train_00005.png"
    Image.fromarray(np.zeros((10, 12), dtype=np.uint8)).save(path)
    return "train_00005.png"


def damage_not_voc(root):
    shutil.rmtree(root / "JPEGImages")
    return "is not VOC"


@pytest.mark.parametrize("name", sorted(n for n in globals() if n.startswith("damage_")))
def test_bad_data_is_one_clear_error_before_any_work(voc, tmp_path, capsys, name):
    words = globals()[name](voc)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["run", f"--root={voc}", f"--out={out}", *RUN])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in error and "Traceback" not in error
    assert not (out / "cam").exists()
    with pytest.raises(SystemExit) as stop:
        main(["doctor", f"--root={voc}", "--network.backbone=vgg_tiny", "--network.weights=null"])
    assert stop.value.code == 1
    assert words in capsys.readouterr().out.replace("\n", "")


def test_doctor_lists_everything_at_once(voc, tmp_path, monkeypatch, capsys):
    words = [damage_truncated(voc), damage_missing(voc), damage_untagged(voc)]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no net"))
    )
    with pytest.raises(SystemExit):
        main(["doctor", f"--root={voc}"])
    printed = capsys.readouterr().out.replace("\n", "")
    assert all(word in printed for word in [*words, "TORCH_HOME", "4 problem(s)"])


def test_unknown_class(voc, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", f"--root={voc}", "--classes=fish,shark", f"--out={tmp_path / 'x'}", *RUN])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "shark" in error and "beetle" in error


def test_output_that_cannot_be_written(voc, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as stop:
        main(["run", f"--root={voc}", f"--out={tmp_path / 'file' / 'run'}", *RUN])
    assert stop.value.code == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_foreign_checkpoint_is_refused(voc, tmp_path, capsys):
    path = tmp_path / "model"
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(SystemExit):
        main(["label", f"--checkpoint={path}", f"--root={voc}", f"--out={tmp_path / 'l'}"])
    assert "not an attention model" in capsys.readouterr().err
