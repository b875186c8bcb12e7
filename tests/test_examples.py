"""The examples run as a user starts them, and print and leave what they say."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

from pgnn_geo.datasets import SHAPES_CLASSES, Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.io.masks import load_mask

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = "--backbone vgg_tiny --weights none --freeze-stages 0 --size 64 --epochs 1".split()


class Run(Protocol):
    def __call__(self, script: str, *arguments: object) -> str: ...


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script as `python SCRIPT ARGUMENTS` does, in this process: torch is loaded already."""

    def run(script: str, *arguments: object) -> str:
        path = str(EXAMPLES / script)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_quickstart(run: Run) -> None:
    lines = dict(line.split(":", 1) for line in run("quickstart.py").splitlines())
    # 6 photos of 4 x 4 patches in 2 groups: 2 graphs of 48 nodes, 48^2 edges each.
    assert "x [96, 64, 8, 11], 2 graphs, ptr [0, 48, 96]" in lines["graph"]
    assert "[6, 64, 30, 41], exact: True" in lines["stitch"]
    assert "edge_index [2, 4608], alpha [4608, 4]" in lines["edges"]
    assert "1.000..1.000" in lines["weights"]
    assert float(lines["paths"].split()[-1]) < 1e-5
    assert "attention [6, 20, 30, 41], logits [6, 20]" in lines["maps"]
    assert "attention [6, 20, 16, 12], logits [6, 20]" in lines["model"]
    assert len((EXAMPLES / "quickstart.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("layers", [0, 1])
def test_voc_stage1(run: Run, shapes_root: Path, layers: int) -> None:
    options = ["--root", shapes_root, "--layers", layers, "--limit", 8, "--workers", 0]
    out = run("voc_stage1.py", *TINY, *options, "--partners", 2)
    assert "8 used, tags from csv" in out
    assert re.search(r"^Epoch: 01, Loss: \d\.\d{4}, \d+ s$", out, re.MULTILINE), out
    scores = re.search(r"^mIoU: (\S+), Precision: (\S+), Recall: (\S+)$", out, re.MULTILINE)
    assert scores is not None, out
    assert all(0 <= float(score) <= 1 for score in scores.groups())


def test_voc_stage1_restricted_to_classes(run: Run, shapes_root: Path) -> None:
    options = ["--root", shapes_root, "--classes", "tree,fish", "--layers", 0, "--workers", 0]
    out = run("voc_stage1.py", *TINY, *options)
    kept = Shapes(shapes_root, "train", num_images=(20, 10), size=64).tags
    assert kept is not None
    columns = [SHAPES_CLASSES.index(name) for name in ("tree", "fish")]
    assert f"{int(kept[:, columns].any(1).sum())} used" in out and "classes=2" in out


def test_tagged_folder(run: Run, shapes_root: Path, tmp_path: Path) -> None:
    photos, csv = shapes_root / "JPEGImages", shapes_root / "image_labels.csv"
    out = run("tagged_folder.py", *TINY, "--root", photos, "--csv", csv, "--out", tmp_path)
    assert f"30 masks in {tmp_path / 'labels'}" in out
    names = sorted(SHAPES_CLASSES)  # the order of a folder's classes
    tags = dict(line.split(",") for line in csv.read_text().splitlines()[1:])
    for image_id, labels in tags.items():
        mask = load_mask(tmp_path / "labels" / f"{image_id}.png")
        allowed = {0, *(names.index(name) + 1 for name in labels.split())}
        assert mask.shape == (64, 64) and set(mask.unique().tolist()) <= allowed
    assert (tmp_path / "overlays.png").stat().st_size > 0
    model = load_attention_model(tmp_path / "model")
    assert model.classes == tuple(names)
    assert model.ledger.to_list() == [f"tags: {csv}"]


def test_tagged_folder_lists_all_problems_before_training(
    run: Run, shapes_root: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("train_00000", "train_00001"):
        content = (shapes_root / "JPEGImages" / f"{name}.jpg").read_bytes()
        (photos / f"{name}.jpg").write_bytes(content[: len(content) // 2])
    csv = tmp_path / "labels.csv"
    csv.write_text("image,labels\ntrain_00000,fish\ntrain_00001,\n")
    arguments = [*TINY, "--root", photos, "--csv", csv, "--out", tmp_path / "out"]
    with pytest.raises(InputError) as error:
        run("tagged_folder.py", *arguments)
    message = str(error.value)
    assert "3 problem(s)" in message and "train_00001 has no tags" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "script, arguments, words",
    [
        ("plug_into_gnn.py", "--groups 2 --epochs 2", "ComplementaryConv"),
        ("explain_edges.py", "--epochs 1 --data DATA --out OUT/edges.png", "edges.png"),
    ],
)
def test_graph_examples(run: Run, tmp_path: Path, script: str, arguments: str, words: str) -> None:
    for name, path in (("DATA", tmp_path / "data"), ("OUT", tmp_path)):
        arguments = arguments.replace(name, str(path))
    assert words in run(script, *arguments.split())


def test_gps_block() -> None:
    # A process of its own: PyG's Sequential imports the script that defines the model anew.
    command = [sys.executable, str(EXAMPLES / "gps_block.py"), "--graphs", "32", "--epochs", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert "GPSConv" in result.stdout
