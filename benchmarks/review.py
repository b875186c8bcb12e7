"""Does review.csv put the worst labels first? Its rank correlation with the true IoU.

    python benchmarks/review.py --labels runs/voc/pgnn/labels --root VOCdevkit/VOC2012

For each row of LABELS/review.csv whose photo has a true mask, the IoU of the class in this photo;
Spearman's rank correlation of the two over all rows, and within each class. OUT/review.md holds
the table.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from torchmetrics.functional import spearman_corrcoef

from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.masks import load_mask
from pgnn_geo.metrics import ConfusionMatrix


def rows_of(labels: Path, data: DataConfig) -> list[tuple[str, float, float]]:
    """Class, confidence and true IoU of every row of a photo with a mask."""
    truth = data.build(with_masks=True)
    places = {image_id: i for i, image_id in enumerate(truth.image_ids)}
    with open(labels / "review.csv", encoding="utf-8", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["image"] in places]
    scores = {}
    for image_id in dict.fromkeys(row["image"] for row in rows):
        matrix = ConfusionMatrix(len(truth.classes), truth.classes)
        matrix.update(load_mask(labels / f"{image_id}.png"), truth.read_mask(places[image_id]))
        scores[image_id] = dict(zip(truth.classes, matrix.compute().iou[1:], strict=True))
    found = [(r["class"], float(r["confidence"]), scores[r["image"]][r["class"]]) for r in rows]
    return [row for row in found if row[2] == row[2]]  # not of a class that is in neither


def correlation(rows: list[tuple[str, float, float]]) -> float:
    """Spearman's, of confidence and IoU."""
    values = torch.tensor([row[1:] for row in rows], dtype=torch.double)
    return float(spearman_corrcoef(values[:, 0], values[:, 1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--labels", type=Path, required=True, help="folder with review.csv")
    parser.add_argument("--root", required=True, help="VOC layout")
    parser.add_argument("--split", default="train")
    parser.add_argument("--classes", help="of the labels, with commas; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/review"))
    args = parser.parse_args()
    rows = rows_of(args.labels, DataConfig("voc", args.root, args.split, args.classes))
    lines = ["| rows | number | mean IoU | Spearman |", "|---|---|---|---|"]
    for name in ["all", *sorted({row[0] for row in rows})]:
        own = [row for row in rows if name in ("all", row[0])]
        if len(own) > 2:
            mean = sum(row[2] for row in own) / len(own)
            lines.append(f"| {name} | {len(own)} | {100 * mean:.1f} | {correlation(own):.3f} |")
    print("\n".join(lines))
    with atomic_write(args.out / "review.md") as handle:
        handle.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
