"""How fast are masks of photos predicted, and how good are they?

    python benchmarks/predict.py --root VOCdevkit/VOC2012 --classes cat,cow,dog,horse,person,sheep \
        --segmenters runs/voc/segmentation/segmenter runs/int8.onnx lraspp_mobilenet_v3_large

A segmenter is what `pgnn-geo predict` takes as --checkpoint; the name of one of torchvision's
segmentation models is that model with random weights, whose speed alone is measured. Photos are
shown as the segmenter's own training showed them, or --side, and averaged with their mirror image.
Segmenters take turns, photo by photo, so that all meet the same machine; the first is what the
others are compared with. OUT/predict.md and .json hold the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from _common import machine

from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.inference import Segmenter
from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn import TorchvisionSegmentation
from pgnn_geo.nn.torchvision_segmentation import TORCHVISION_SEGMENTATION


def load(name: str, classes: tuple[str, ...], side: int) -> tuple[Segmenter, bool]:
    """Return a segmenter, and whether it has learnt anything."""
    if name not in TORCHVISION_SEGMENTATION:
        return Segmenter.from_pretrained(name), True
    network = TorchvisionSegmentation(name, len(classes), weights=None).eval()
    return Segmenter(network, classes, SupervisionLedger(), side=side), False


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table; times are medians over the photos."""
    heads = ["segmenter", "ms a photo", "photos a second", "times the first", "mIoU"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        miou = "" if row["miou"] is None else f"{100 * row['miou']:.2f}"
        lines.append(
            f"| `{row['name']}` | {1000 * row['seconds']:.0f} | {1 / row['seconds']:.2f} "
            f"| {row['ratio']:.2f} | {miou} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--segmenters", nargs="+", required=True)
    cli.add_argument("--root", required=True, help="VOC layout")
    cli.add_argument("--split", default="val")
    cli.add_argument("--classes", help="of the segmenters, with commas; all by default")
    cli.add_argument("--photos", type=int, help="so many, evenly spread; all by default")
    cli.add_argument("--side", type=int, default=320, help="of networks with random weights")
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--out", type=Path, default=Path("runs/predict"))
    args = cli.parse_args()
    torch.set_num_threads(args.threads)
    data = DataConfig("voc", args.root, args.split, args.classes).build(with_masks=True)
    wanted = min(args.photos or len(data), len(data))
    data = data.subset([i * len(data) // wanted for i in range(wanted)])
    loaded = [(name, *load(name, data.classes, args.side)) for name in args.segmenters]
    seconds: dict[str, list[float]] = {name: [] for name in args.segmenters}
    matrices = {name: ConfusionMatrix(len(data.classes), data.classes) for name in args.segmenters}
    for _, segmenter, _ in loaded:  # what is set up once is not timed
        segmenter.label(data[0]["image"].as_subclass(torch.Tensor))
    for index in range(len(data)):
        item = data[index]
        image = item["image"].as_subclass(torch.Tensor)
        for name, segmenter, _ in loaded:
            start = time.perf_counter()
            labels = segmenter.label(image)
            seconds[name].append(time.perf_counter() - start)
            matrices[name].update(labels, item["mask"].as_subclass(torch.Tensor), item["image_id"])
    first = seconds[args.segmenters[0]]
    rows = []
    for name, _, learnt in loaded:
        pairs = zip(first, seconds[name], strict=True)
        rows.append(
            {
                "name": name,
                "seconds": statistics.median(seconds[name]),
                "ratio": statistics.median(one / other for one, other in pairs),
                "miou": matrices[name].compute().miou if learnt else None,
            }
        )
    about = {"photos": len(data), "machine": machine("cpu"), "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out / "predict.json") as handle:
        handle.write(json.dumps(about, indent=2).encode())
    with atomic_write(args.out / "predict.md") as handle:
        handle.write(markdown(rows).encode())
    print(markdown(rows))


if __name__ == "__main__":
    main()
