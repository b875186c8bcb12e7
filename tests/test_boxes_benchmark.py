"""benchmarks/boxes.py as its user starts it, on a small set in VOC layout."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from scripts import run_benchmark

from pgnn_geo.boxes import AttentionBoxes, evaluate_boxes, true_boxes, write_boxes
from pgnn_geo.datasets import VOC2012
from pgnn_geo.io.checkpoint import save_attention_model
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.labels import MapConfig, attention_maps
from pgnn_geo.nn import PGNN

measure = partial(run_benchmark, "boxes")


def test_rows_of_a_cam_and_of_a_file(shapes_root: Path, tmp_path: Path) -> None:
    photos = VOC2012(shapes_root, "train", with_masks=True)
    true, ledger = true_boxes(photos), SupervisionLedger(tags="csv (voc train)", boxes="true")
    write_boxes(tmp_path / "true.json", true, photos.classes, ledger)
    torch.manual_seed(0)
    model = PGNN("vgg_tiny", 5, layers=0, weights=None)
    save_attention_model(tmp_path / "model", model, photos.classes, SupervisionLedger(tags="t"))
    options = ["--root", shapes_root, "--out", tmp_path / "out", "--boxes", tmp_path / "true.json"]
    measure(*options, "--checkpoint", tmp_path / "model")

    rows = json.loads((tmp_path / "out" / "boxes.json").read_text())["rows"]
    assert len(rows) == 7 and all("completed" in row["boxes"] for row in rows[3:6])
    assert rows[-1]["corloc"] == rows[-1]["map"] == 1
    assert rows[-1]["supervision"] == ["tags: csv (voc train)", "boxes: true"]
    maps = attention_maps(model, photos, MapConfig(propagate="none", output_stride=8))
    expected = evaluate_boxes(AttentionBoxes(maps, photos), true, photos.classes)
    assert rows[0]["corloc"] == pytest.approx(expected.mean_corloc)
    assert "score overlap" in rows[0]["boxes"] and rows[0]["supervision"] == ["tags: t"]
    table = (tmp_path / "out" / "boxes.md").read_text().splitlines()
    assert len(table) == 9 and "| 100.0 | 100.0 |" in table[-1]
    assert not (tmp_path / "out" / "stems").exists()


def test_there_must_be_something_to_measure(
    shapes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        measure("--root", shapes_root, "--out", tmp_path / "out")
    assert "want --checkpoint or --boxes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
