"""benchmarks/ablation.py as its user starts it, on a small set in VOC layout."""

import importlib
import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import forked
import pytest
import torch
from scripts import BENCHMARKS, run_benchmark

from pgnn_geo.app.config import RunConfig
from pgnn_geo.datasets import VOC2012
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.labels.maps import attention_maps
from pgnn_geo.labels.seeds import seed_labels
from pgnn_geo.metrics import ConfusionMatrix

SMALL = (
    "--backbone vgg_tiny --weights none --size 64 --epochs 1 --completion-epochs 1 --workers 0 "
    "--tables 1"
).split()


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("_ablation_plan")


ablation = partial(run_benchmark, "ablation")


def times(folder: Path, pattern: str) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob(pattern)}


def cell(out: Path, variant: str, seed: int) -> str:
    """Name of the one cell of a variant and seed in table 1."""
    content = json.loads((out / "ablation.json").read_text())
    row = next(row for row in content["tables"][0]["rows"] if row["variant"] == variant)
    return f"{variant}-seed{seed}-{row['maps']}"


@pytest.fixture(scope="module")
def voc(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set with a larger list of photos around its train split."""
    root = shutil.copytree(shapes_root, tmp_path_factory.mktemp("voc") / "shapes")
    lists = root / "ImageSets" / "Segmentation"
    names = [(lists / f"{split}.txt").read_text() for split in ("train", "val")]
    (lists / "train_aug.txt").write_text("".join(names))
    return root


@pytest.fixture(scope="module")
def finished(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """An ablation that was killed after a cell and started again; what the killed one left."""
    out = tmp_path_factory.mktemp("ablation")
    arguments = [f"--root={voc}", f"--out={out}", *SMALL, "--seeds", "0", "1"]
    process = forked.start(ablation, *arguments)
    end = time.monotonic() + 120
    while not list(out.glob("cells/*.json")) and process.exitcode is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.join()
    left = times(out, "cells/*.json") | times(out, "train/*/model")
    assert left
    ablation(*arguments)
    return out, left


def test_a_killed_run_is_completed_and_nothing_is_done_twice(
    finished: tuple[Path, dict[str, int]],
) -> None:
    out, left = finished
    now = times(out, "cells/*.json") | times(out, "train/*/model")
    models = {f"train/{name}-seed{k}/model" for name in ("cam", "pgnn") for k in (0, 1)}
    cells = {f"cells/{cell(out, name, k)}.json" for name in ("cam", "pgnn") for k in (0, 1)}
    assert set(now) == models | cells
    assert len(left) < len(now) and {name: now[name] for name in left} == left
    assert not (out / "stems").exists() and not list(out.glob("train/*/checkpoints"))
    assert not list(out.glob("train/*/.tmp-*"))


def test_a_cell_says_what_the_labels_of_its_model_are_worth(
    finished: tuple[Path, dict[str, int]], voc: Path
) -> None:
    out, _ = finished
    config = RunConfig(DataConfig("voc", str(voc)), "trained")
    for name, seed in (("cam", 1), ("pgnn", 0)):  # as `pgnn-geo run` labels and evaluates
        found = json.loads((out / "cells" / f"{cell(out, name, seed)}.json").read_text())
        assert found["background"] == config.labels_of(name).background
        maps = replace(config.maps_of(name), size=64)
        folder = out / "train" / f"{name}-seed{seed}"
        model, classes, ledger, _ = load_attention_model(folder / "model")
        truth = VOC2012(voc, "train", with_masks=True)
        matrix = ConfusionMatrix(len(classes), classes)
        for item, own in zip(truth, attention_maps(model, truth, maps), strict=False):
            labels = item["tags"].nonzero()[:, 0] + 1
            predicted = seed_labels(own, (64, 64), labels, found["background"])
            matrix.update(predicted, item["mask"].as_subclass(torch.Tensor))
        scores = matrix.compute().to_dict()
        for measure in ("miou", "precision", "recall"):
            assert found["fixed"][measure] == pytest.approx(scores[measure], abs=1e-6)
        assert found["oracle"]["miou"] == max(entry["miou"] for entry in found["sweep"])
        assert found["oracle"]["miou"] >= found["fixed"]["miou"]
        assert found["split"] == "train" and found["images"] == 20
        assert found["supervision"] == ledger.to_list() == ["tags: csv (voc train)"]
        assert found["seconds"]["train"] > 0 and found["seconds"]["maps"] > 0


def test_tables(finished: tuple[Path, dict[str, int]]) -> None:
    out, _ = finished
    text = (out / "ablation.md").read_text()
    content = json.loads((out / "ablation.json").read_text())
    assert f"--out={out} " in content["command"] and content["command"] in text
    (table,) = content["tables"]  # the one asked for
    cam, pgnn = table["rows"]
    assert (cam["label"], pgnn["label"]) == ("CAM", "P-GNN")
    cells = [
        json.loads((out / "cells" / f"{cell(out, 'cam', k)}.json").read_text())["fixed"]["miou"]
        for k in (0, 1)
    ]
    mean, spread = sum(cells) / 2, abs(cells[0] - cells[1]) / 2**0.5
    assert cam["seeds"] == [0, 1]
    assert cam["miou"] == pytest.approx(mean) and cam["std"]["miou"] == pytest.approx(spread)
    assert f"| CAM | {100 * mean:.1f} ± {100 * spread:.1f} |" in text
    assert "| 2 | 46.3 / 59.7 |" in text and "| 2 | 57.8 / 86.3 |" in text
    assert "20 photos of `train`, 5 classes (fish, bird" in text


def test_report_alone_marks_rows_of_one_seed(
    finished: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    out = shutil.copytree(finished[0], tmp_path / "copy")
    (out / "cells" / f"{cell(out, 'pgnn', 1)}.json").unlink()
    before = times(out, "cells/*.json") | times(out, "train/*/*")
    ablation("--report", "--out", out)
    assert times(out, "cells/*.json") | times(out, "train/*/*") == before
    rows = json.loads((out / "ablation.json").read_text())["tables"][0]["rows"]
    assert [row["seeds"] for row in rows] == [[0], [0]]  # both rows over the same seed
    text = (out / "ablation.md").read_text()
    assert text.count("| one (seed 0) |") == 2 and "±" not in text.split("## ")[1]


def test_another_configuration_is_refused(
    finished: tuple[Path, dict[str, int]], voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    for more, words in (
        (["--epochs", 2], "train.epochs: 1 there, 2 asked for"),
        (["--tune", "extra"], "data.split: 'train' there"),
    ):
        with pytest.raises(SystemExit) as stop:
            ablation("--root", voc, "--out", out, *SMALL, *more)
        assert stop.value.code == 2 and words in capsys.readouterr().err
    path = out / "cells" / f"{cell(out, 'cam', 0)}.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"background": 0.99}))
    with pytest.raises(SystemExit):
        ablation("--root", voc, "--out", out, *SMALL)
    path.write_text(whole)
    assert "background: 0.99 there, 0.15 asked for" in capsys.readouterr().err


def test_backgrounds_are_chosen_on_other_photos(
    finished: tuple[Path, dict[str, int]],
    voc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shutil.copytree(finished[0], tmp_path / "copy")
    tuned = tmp_path / "tuned"
    ablation("--root", voc, "--out", tuned, *SMALL, "--seeds", 0, "--tune", "extra")
    other = json.loads((tuned / "ablation.json").read_text())
    assert other["data"]["split"] == "train_aug without train" and other["data"]["images"] == 10
    found = json.loads((tuned / "cells" / f"{cell(tuned, 'cam', 0)}.json").read_text())
    assert found["split"] == "train_aug without train" and found["images"] == 10
    assert found["supervision"] == ["tags: csv (voc train_aug without train)"]

    ablation("--report", "--out", out, "--backgrounds", tuned / "ablation.json")
    (table,), (theirs,) = (
        json.loads((folder / "ablation.json").read_text())["tables"] for folder in (out, tuned)
    )
    for row, source in zip(table["rows"], theirs["rows"], strict=True):
        assert row["background"] == source["best_background"]
        assert row["miou"] <= row["oracle_miou"] + 1e-9
    assert (out / "ablation.md").read_text().count(" (tuned) |") == 2
    with pytest.raises(SystemExit):
        ablation("--report", "--out", out, "--backgrounds", out / "ablation.json")
    assert "measured on train itself" in capsys.readouterr().err


def test_the_plan_names_what_is_there(plan: ModuleType) -> None:
    base = RunConfig(DataConfig("voc", "nowhere"), "trained")
    found = plan.Plan(base)
    for table in plan.TABLES:
        assert len({row.label for row in table.rows}) == len(table.rows)
        for row in table.rows:
            assert found.of(row).variant in found.variants
    used = {row.variant for table in plan.TABLES for row in table.rows}
    assert used == set(plan.VARIANTS)


def test_equal_variants_are_trained_once(plan: ModuleType) -> None:
    base = RunConfig(DataConfig("voc", "nowhere"), "trained")
    found = plan.Plan(base)
    assert found.variants["grid-4"][0] == found.variants["loss-off"][0] == "pgnn"
    assert found.variants["lambda-1-1-0.8-1"][0] == "loss-stable"
    names = {name: value[0] for name, value in found.variants.items()}
    assert len({names[name] for name in ("cam", "tags", "no-graph", "grid-2", "pgnn")}) == 5
    # As many visits whatever is trained, and the other base is the other variants' as well.
    for name in ("cam", "tags", "pgnn", "no-graph"):
        _, model, config = found.variants[name]
        train = config.train_of(model)
        assert train.epochs + train.completion_epochs == 6
    coarse = plan.Plan(replace(base, network=base.network | {"grid": 2}))
    assert coarse.variants["grid-2"][0] == "pgnn" and coarse.variants["grid-4"][0] == "grid-4"


def test_equal_maps_are_inferred_once(plan: ModuleType) -> None:
    base = RunConfig(DataConfig("voc", "nowhere"), "trained")
    found, row = plan.Plan(base), plan.Row
    default = found.of(row("", "pgnn", "default"))
    assert default.map_config == base.maps_of("pgnn") and default.maps != "default"
    assert found.of(row("", "cam", "none")).map_config == replace(
        base.train.completion_maps, propagate="none"
    )
    for variant in ("cam", "no-graph"):  # one head: nothing comes after a graph
        assert found.of(row("", variant, "after")).maps == "before"
    assert found.of(row("", "tags", "after")).maps == "after"


def test_boxes_are_other_variants_beside_the_same_cam(plan: ModuleType) -> None:
    base = RunConfig(DataConfig("voc", "nowhere"), "trained")
    found, row = plan.Plan(base, "my.json"), plan.Row
    names = {name: value[0] for name, value in found.variants.items()}
    assert len({names[name] for name in ("pgnn", "boxes-3", "boxes-5", "boxes-10")}) == 4
    planned = found.of(row("", "boxes-3", "after"))
    assert (planned.config.boxes.source, planned.config.boxes.top_k) == ("attention", 3)
    cam = found.of(row("", "cam", "before"))
    assert planned.cam.seeded(1) == cam.seeded(1) and planned.cam.variant == cam.variant
    assert plan.describe(planned, 0)["boxes"]["top_k"] == 3
    assert plan.describe(cam, 0)["boxes"] is None
    assert found.of(row("", "boxes-file", "after")).config.boxes.file == "my.json"


@pytest.mark.slow
def test_boxes_of_the_cam_and_of_a_file(voc: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", [*SMALL[:-1], "patches", "--seeds", 0]
    ablation("--root", voc, "--out", out, *options)
    made = out / "train" / "cam-seed0" / "boxes.json"
    assert made.is_file() and not list(out.glob("cells/boxes-file*"))
    labels = {path.name for path in (out / "cells").iterdir()}
    ablation("--root", voc, "--out", out, *options, "--boxes", made)
    assert {path.name for path in (out / "cells").iterdir()} > labels
    rows = json.loads((out / "ablation.json").read_text())["tables"][0]["rows"]
    assert [row["variant"] for row in rows[::2]] == [
        *("pgnn", "boxes-3", "boxes-5", "boxes-10", "boxes-file")
    ]
    best, given = rows[4:6], rows[8:10]  # five boxes of the CAM's, and the same from a file
    for own, other in zip(best, given, strict=True):
        assert own["miou"] == other["miou"] and own["oracle_miou"] == other["oracle_miou"]


def test_which_background_score_is_fixed(plan: ModuleType) -> None:
    base = RunConfig(DataConfig("voc", "nowhere"), "trained")
    base = replace(base, train=replace(base.train, foreground=0.7, background=0.2))
    found, row = plan.Plan(base), plan.Row
    for variant, plain, propagated in (
        ("cam", base.cam_labels.background, 0.45),
        ("tags", base.cam_labels.background, 0.45),
        ("pgnn", base.labels.background, base.labels.background),
    ):
        for maps, background in (("none", plain), ("before-both", propagated)):
            planned = found.of(row("", variant, maps))
            assert planned.background == pytest.approx(background), (variant, maps)
