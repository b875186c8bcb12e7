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
from pgnn_geo.inference.segmenter import Segmenter
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
    for row, column in ((rows[1], "minus full supervision"), (rows[2], "minus the first labels")):
        other = rows[0] if "full" in column else rows[1]
        gaps = [100 * (row["by_seed"]["miou"][s] - other["by_seed"]["miou"][s]) for s in "01"]
        interval = f"{mean(gaps):+.1f} ± {12.7062047 * stdev(gaps) / 2**0.5:.1f}"
        assert cell_of(table, row["title"], column) == interval
    assert cell_of(table, "true masks", "minus full supervision") == ""
    assert cell_of(table, "half", "minus the first labels") == ""


def cell_of(table: str, title: str, column: str) -> str:
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    heads = [head.strip() for head in rows[0]]
    (row,) = (row for row in rows if row[0].strip() == title)
    return row[heads.index(column)].strip()


def test_settings_are_rows_of_the_same_seed(
    shapes_root: Path, labels: Path, tmp_path: Path
) -> None:
    settings = '{"": {}, "slow": {"lr": 1e-7}}'
    command = ["--root", shapes_root, "--split", "train", "--labels.half", labels, *TINY]
    command += ["--settings", settings, "--own", "4", "--protocols", '["scales", "par"]']
    command += ["--train.epochs", "1"]
    compare(*command, "--seeds", "[3]", "--out", tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "segmentation.json").read_text())["rows"]
    found = {row["title"]: row["miou"] for row in rows}
    assert list(found) == ["true masks", "true masks, slow", "half", "half, slow"]
    assert found["half"] != found["half, slow"]  # which is still what chance made of it
    text = (tmp_path / "out" / "segmentation.md").read_text()
    cut = text.index("| trained on | scales | par |")
    table, second = text[:cut], text[cut:]
    # Each setting beside full supervision of its own, one pair without an interval.
    gap = 100 * (found["half, slow"] - found["true masks, slow"])
    assert cell_of(table, "half, slow", "minus full supervision") == f"{gap:+.1f}"
    gap = 100 * (found["half, slow"] - found["half"])
    assert cell_of(table, "half, slow", "minus the first labels") == f"{gap:+.1f}"
    # Told the tags, on every fourth training photo; the labels are the true masks' right halves.
    folder = tmp_path / "out" / "half-off-slow-seed3"
    segmenter = Segmenter.from_pretrained(folder / "segmenter")
    truth = VOC2012(shapes_root, "train", with_masks=True)
    own, halves = (ConfusionMatrix(len(truth.classes), truth.classes) for _ in range(2))
    for item in truth.subset(range(0, len(truth), 4)):
        image, mask = (item[name].as_subclass(torch.Tensor) for name in ("image", "mask"))
        probabilities = segmenter.predict(image)
        probabilities[1:][~item["tags"].bool()] = 0
        own.update(probabilities.argmax(0), mask, "")
        halves.update(load_mask(labels / f"{item['image_id']}.png"), mask, "")
    both = [matrix.compute().miou for matrix in (halves, own)]
    told = json.loads((folder / "own.json").read_text())
    assert [told["labels"], told["network"]] == pytest.approx(both, abs=1e-3)
    assert cell_of(table, "half, slow", "labels, own masks") == ", ".join(
        f"{100 * value:.1f}" for value in both
    )
    # Three scales on the photos that are measured, and the share of full supervision by the same.
    matrix = ConfusionMatrix(len(truth.classes), truth.classes)
    for item in VOC2012(shapes_root, "val", with_masks=True):
        image, mask = (item[name].as_subclass(torch.Tensor) for name in ("image", "mask"))
        matrix.update(segmenter.label(image, scales=(0.75, 1.0, 1.25)), mask, "")
    several = json.loads((folder / "protocols.json").read_text())
    assert several["scales"] == pytest.approx(matrix.compute().miou)
    assert len({*several.values(), found["half, slow"]}) == 3
    full = json.loads((folder.parent / "true-masks-off-slow-seed3/protocols.json").read_text())
    share = f"{100 * several['par'] / full['par']:.1f} %"
    assert cell_of(second, "half, slow", "par") == f"{100 * several['par']:.1f} ({share})"


def test_labels_that_are_not_there(shapes_root: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare(
            *("--root", shapes_root, "--split", "train", "--labels.none", tmp_path / "none"),
            *("--out", tmp_path / "out"),
        )
    assert "none" in capsys.readouterr().err


def test_true_masks_of_some_photos_are_rows(
    shapes_root: Path, labels: Path, tmp_path: Path
) -> None:
    command = ["--root", shapes_root, "--split", "train", "--labels.half", labels, *TINY]
    command += ["--train.epochs", "1", "--seeds", "[0]", "--truth", "false"]
    compare(*command, "--true_masks", "[0, 0.25]", "--out", tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "segmentation.json").read_text())["rows"]
    assert [row["title"] for row in rows] == ["half", "half, 25 % true masks"]
    metrics = tmp_path / "out" / "half-25-%-true-masks-off-seed0" / "metrics.json"
    assert json.loads(metrics.read_text())["true_masks"] == 0.25


def test_a_setting_that_there_is_not(shapes_root: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare(
            *("--root", shapes_root, "--split", "train", "--out", tmp_path / "out"),
            *("--settings", '{"slow": {"rate": 1}}'),
        )
    assert (
        "rate: want some of head, normalize, propagation, freeze_stages" in capsys.readouterr().err
    )
