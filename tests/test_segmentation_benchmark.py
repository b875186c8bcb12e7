"""benchmarks/segmentation.py as its user starts it, on a small set in VOC layout."""

import json
import shutil
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from scripts import run_benchmark

from pgnn_geo.datasets import VOC2012
from pgnn_geo.io.masks import load_mask, save_mask
from pgnn_geo.metrics import ConfusionMatrix

TINY = [
    *("--network.backbone", "vgg_tiny", "--network.weights", "null"),
    *("--network.hidden_channels", "32", "--train.freeze_stages", "1", "--train.size", "64"),
    *("--train.crop", "64", "--train.epochs", "2", "--train.workers", "0"),
]


compare = partial(run_benchmark, "segmentation")


@pytest.fixture(scope="module")
def labels(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The true masks of the training photos without their left half."""
    folder = tmp_path_factory.mktemp("labels")
    for path in (shapes_root / "SegmentationClass").glob("train_*.png"):
        mask = load_mask(path)
        mask[:, : mask.size(1) // 2] = 0
        save_mask(folder / path.name, mask)
    return folder


def test_rows_over_seeds_and_what_is_there_is_not_done_again(
    shapes_root: Path, labels: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(shapes_root, tmp_path / "voc")
    command = ["--root", root, "--split", "train", "--labels.half", labels, *TINY]
    command += ["--mutual", '["off", "literal"]', "--out", tmp_path / "out"]
    compare(*command, "--seeds", "[0]")
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/*/metrics.json")}
    assert len(times) == 3
    compare(*command, "--seeds", "[0, 1]")
    assert (
        times.items()
        <= {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/*/metrics.json")}.items()
    )

    rows = json.loads((tmp_path / "out" / "segmentation.json").read_text())["rows"]
    assert [row["title"] for row in rows] == [
        "true masks",
        "half",
        "half, mutual complement literal",
    ]
    truth = VOC2012(root, "val", with_masks=True)
    for row, folder in zip(rows, ("true-masks-off", "half-off", "half-literal"), strict=True):
        found = []
        for seed in (0, 1):  # the scores, from the predictions themselves
            matrix = ConfusionMatrix(len(truth.classes), truth.classes)
            for item in truth:
                name = f"{folder}-seed{seed}/predictions/{item['image_id']}.png"
                predicted = load_mask(tmp_path / "out" / name)
                matrix.update(predicted, item["mask"].as_subclass(torch.Tensor), "")
            found.append(matrix.compute().miou)
        assert row["miou"] == pytest.approx(mean(found))
        assert row["std"]["miou"] == pytest.approx(stdev(found))
    assert rows[0]["labels"] is None and 0.3 < rows[1]["labels"]["recall"] < 0.7
    assert any("true masks" in entry for entry in rows[0]["supervision"])
    changed = tmp_path / "out" / "half-literal-seed0" / "labels" / "epoch-001" / "changed.json"
    assert changed.is_file()

    table = (tmp_path / "out" / "segmentation.md").read_text()
    share = 100 * rows[1]["miou"] / rows[0]["miou"]
    assert f"{share:.1f} %" in table and "| 0, 1 |" in table and "±" in table


def test_labels_that_are_not_there(shapes_root: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare(
            *("--root", shapes_root, "--split", "train", "--labels.none", tmp_path / "none"),
            *("--out", tmp_path / "out"),
        )
    assert "none" in capsys.readouterr().err
