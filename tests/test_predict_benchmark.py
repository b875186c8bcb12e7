"""`benchmarks/predict.py` on the embedded data set."""

import json
from pathlib import Path

import torch
from scripts import run_benchmark

from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.inference import Segmenter
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn import DeepLabV2

LIGHT = "lraspp_mobilenet_v3_large"


def test_segmenters_take_turns_and_are_measured(shapes_root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    photos = DataConfig("voc", str(shapes_root), "val").build(with_masks=True)
    network = DeepLabV2("vgg_tiny", 5, "largefov", hidden_channels=16, weights=None)
    torch.nn.init.normal_(network.head.branches[0][-1].weight)  # labels that differ
    segmenter = Segmenter(network, photos.classes, SupervisionLedger(), side=64)
    saved = segmenter.save_pretrained(tmp_path / "segmenter")
    given = ["--segmenters", saved, LIGHT, "--root", shapes_root, "--photos", 4, "--side", 64]
    run_benchmark("predict", *given, "--threads", 1, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "predict.json").read_text())
    first, second = found["rows"]
    assert found["photos"] == 4 and (first["name"], second["name"]) == (str(saved), LIGHT)
    assert first["ratio"] == 1 and second["ratio"] > 0 and second["miou"] is None

    matrix = ConfusionMatrix(5, photos.classes)
    for index in (0, 2, 5, 7):
        item = photos[index]
        image = item["image"].as_subclass(torch.Tensor)
        matrix.update(segmenter.label(image), photos.read_mask(index), item["image_id"])
    assert first["miou"] == matrix.compute().miou
    table = (tmp_path / "out" / "predict.md").read_text()
    assert f"| `{saved}` |" in table and f"{100 * first['miou']:.2f}" in table
