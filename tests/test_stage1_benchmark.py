"""`benchmarks/stage1.py`, and its table of choices, on drawn photos."""

import json
import shutil
from pathlib import Path

import pytest
from scripts import run_benchmark

TINY = """
features: {size: 64}
evidence: {positions: 500, iterations: 3, classifier_rounds: 1, prototype_rounds: 1}
labels: {background: 0.5}
"""


@pytest.fixture
def root(shapes_root: Path, tmp_path: Path) -> Path:
    """The drawn photos, of which `val` is what `train_aug` has more than `train`."""
    root = shutil.copytree(shapes_root, tmp_path / "voc")
    splits = root / "ImageSets" / "Segmentation"
    both = (splits / "train.txt").read_text() + (splits / "val.txt").read_text()
    (splits / "train_aug.txt").write_text(both)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return root


def test_a_table_of_choices(root: Path, tmp_path: Path) -> None:
    options = ["--steps", "classifier", "--refine", "none", "--backgrounds", "0.5", "0.3"]
    choices = ["--set", "foreground=0.6", "background=0.2", "--set", "kernel=linear", "power=1"]
    tune = ["--tune", "extra", "--with-split", "--every", "2"]
    command = [f"--root={root}", f"--recipe={tmp_path / 'tiny.yaml'}", "--backbone=vgg_tiny"]
    run_benchmark("stage1", *command, f"--out={tmp_path}", *options, *tune, *choices)
    found = json.loads((tmp_path / "stage1.json").read_text())
    assert found["photos"] == 5 and found["photos whose tags are learned from"] == 25
    names = ["foreground=0.6 background=0.2", "kernel=linear power=1"]
    assert [(row["set"], row["background"]) for row in found["rows"]] == [
        (name, score) for name in names for score in ("0.5", "0.3")
    ]
    assert found["evidence"][names[0]]["background"] == 0.2
    assert found["evidence"][names[1]]["kernel"] == "linear"
    first, second = found["rows"][0], found["rows"][2]
    assert 0 < first["miou"] < 100 and first["miou"] != second["miou"]
    table = (tmp_path / "stage1.md").read_text()
    assert f"| {names[0]} | classifier | none | 0.5 | {first['miou']:.1f} |" in table


def test_every_step_as_it_is_and_refined(root: Path, tmp_path: Path) -> None:
    command = [f"--root={root}", f"--recipe={tmp_path / 'tiny.yaml'}", "--backbone=vgg_tiny"]
    run_benchmark("stage1", *command, f"--out={tmp_path}", "--errors")
    found = json.loads((tmp_path / "stage1.json").read_text())
    assert found["photos"] == found["photos whose tags are learned from"] == 20
    assert [(row["step"], row["refine"]) for row in found["rows"]] == [
        (step, refine)
        for step in ("evidence", "prototypes", "classifier")
        for refine in ("none", "par")
    ]
    table = (tmp_path / "stage1.md").read_text()
    for row in found["rows"]:
        *classes, mean = row["classes"]
        assert [each["class"] for each in classes][:2] == ["background", "fish"]
        assert mean["IoU"] == pytest.approx(row["miou"])
        assert mean["IoU"] == pytest.approx(sum(each["IoU"] for each in classes) / len(classes))
        assert min(mean[kind] for kind in ("boundary", "missed", "spill", "confusion")) >= 0
        assert f"{row['step']}, {row['refine']}, {row['background']}:" in table
    first = found["rows"][0]["classes"]  # each beside the same CAM
    for row in found["rows"][1:]:
        assert [c["CAM"] for c in row["classes"]] == [c["CAM"] for c in first]


def test_the_cam_beside_each_class_is_that_of_a_run(root: Path, tmp_path: Path) -> None:
    """The step of the tags' evidence, at the baseline's own score."""
    recipe = tmp_path / "cam.yaml"
    recipe.write_text(TINY.replace("background: 0.5", "background: 0.15"))
    command = [f"--root={root}", f"--recipe={recipe}", "--backbone=vgg_tiny", "--errors"]
    options = ["--steps", "evidence", "--refine", "none"]
    run_benchmark("stage1", *command, *options, f"--out={tmp_path}")
    (row,) = json.loads((tmp_path / "stage1.json").read_text())["rows"]
    assert all(each["CAM"] == each["IoU"] for each in row["classes"])
