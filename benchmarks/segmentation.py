"""What is a segmentation network worth that was trained on pseudo-labels, beside full supervision?

    python benchmarks/segmentation.py --root VOCdevkit/VOC2012 --split train_aug \
        --labels pgnn=runs/voc/pgnn/labels cam=runs/voc/cam/labels --mutual off tags \
        --seeds 0 1 2 --out runs/segmentation

Trains DeepLab-v2 once per seed on the true masks, and on each folder of labels with each rule of
the mutual complement; measures all of them on --eval-split, and the labels on the photos that they
are of. A training is a folder of its own in OUT: a run that was cut off goes on where it stopped.
OUT/segmentation.md and .json are written anew after each.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from _common import machine

from pgnn_geo import stage2
from pgnn_geo.config import (
    DataConfig,
    SegmentationNetworkConfig,
    SegmentationTrainingConfigChanges,
    Stage2Config,
    recipe_with,
)
from pgnn_geo.errors import InputError
from pgnn_geo.evaluation import evaluate
from pgnn_geo.files import atomic_write, write_json
from pgnn_geo.run_folder import console
from pgnn_geo.training.segmentation import RECIPES

MEASURES = ("miou", "precision", "recall")


class Row(NamedTuple):
    """What a network is trained on, and how labels are rewritten on the way."""

    name: str
    labels: str
    mutual: str

    @property
    def title(self) -> str:
        """How tables call it."""
        return (
            self.name if self.mutual == "off" else f"{self.name}, mutual complement {self.mutual}"
        )


def parser() -> argparse.ArgumentParser:
    """Return the arguments."""
    summary = (__doc__ or "").splitlines()[0]
    out = argparse.ArgumentParser(
        description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    out.add_argument("--root", required=True, help="the VOC2012 folder")
    out.add_argument("--split", default="train_aug", help="photos to train on")
    out.add_argument("--eval-split", default="val", help="photos to measure on")
    out.add_argument("--classes", help="comma-separated names that restrict the task")
    out.add_argument("--labels", nargs="+", default=[], metavar="NAME=FOLDER", help="label images")
    out.add_argument("--no-truth", action="store_true", help="leave full supervision out")
    rules = ["off", "literal", "tags"]
    out.add_argument("--mutual", nargs="+", choices=rules, default=["off"], help="on the labels")
    out.add_argument("--mutual-start", type=int, default=1, help="first epoch to rewrite after")
    out.add_argument("--mutual-confidence", type=float, help="probability that rewrites a label")
    out.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    out.add_argument("--recipe", choices=list(RECIPES), default="short")
    out.add_argument("--epochs", type=int, help="in place of the recipe's")
    out.add_argument("--out", type=Path, required=True, help="folder of the results")
    return out


def rows_of(args: argparse.Namespace) -> Iterator[Row]:
    """Yield what to train on, full supervision first."""
    if not args.no_truth:
        yield Row("true masks", stage2.TRUTH, "off")
    for entry in args.labels:
        name, equals, folder = entry.partition("=")
        if not equals:
            raise InputError(f"--labels {entry}: want NAME=FOLDER")
        for rule in args.mutual:
            yield Row(name, folder, rule)


def cell(args: argparse.Namespace, row: Row, seed: int) -> dict[str, Any]:
    """Train and measure one network, unless that is done; return its metrics."""
    changes = SegmentationTrainingConfigChanges(epochs=args.epochs, seed=seed)
    config = Stage2Config(
        eval_split=args.eval_split,
        network=SegmentationNetworkConfig(),
        train=recipe_with(args.recipe, changes),
        mutual=row.mutual,
        mutual_start=args.mutual_start,
        mutual_confidence=args.mutual_confidence,
    )
    if row.mutual == "off":  # what has no bearing must not tell folders apart
        config = replace(config, mutual_start=1, mutual_confidence=None)
    photos = DataConfig("voc", args.root, args.split, args.classes)
    name = f"{row.name}-{row.mutual}".replace(" ", "-")
    return stage2.train_and_measure(config.on(photos, row.labels), args.out / f"{name}-seed{seed}")


def label_scores(args: argparse.Namespace, row: Row) -> dict[str, Any] | None:
    """Return the scores of the labels themselves on the photos that they are of."""
    if row.labels == stage2.TRUTH:
        return None
    photos = DataConfig("voc", args.root, args.split, args.classes).build(with_masks=True)
    scores = evaluate(Path(row.labels), photos).to_dict()
    return {name: scores[name] for name in MEASURES}


def summary(row: Row, cells: dict[int, dict[str, Any]], labels: dict[str, Any] | None) -> Any:
    """Return means and spreads over the seeds of one row."""
    values = {name: [cells[seed]["segmenter"][name] for seed in sorted(cells)] for name in MEASURES}
    return {
        "title": row.title,
        "seeds": sorted(cells),
        "labels": labels,
        **{name: mean(each) for name, each in values.items()},
        "std": {name: stdev(each) if len(each) > 1 else None for name, each in values.items()},
        "by_seed": {
            name: dict(zip(sorted(cells), each, strict=True)) for name, each in values.items()
        },
        "supervision": next(iter(cells.values()))["supervision"],
    }


def share_of_full(row: dict[str, Any], full: dict[str, Any] | None) -> str:
    """Return a row's mIoU as a share of full supervision's, over the seeds that both have."""
    if full is None:
        return ""
    seeds = [seed for seed in row["seeds"] if seed in full["seeds"]]
    if not seeds:
        return ""
    own, best = (mean(each["by_seed"]["miou"][seed] for seed in seeds) for each in (row, full))
    return f"{100 * own / best:.1f} %"


def markdown(results: list[dict[str, Any]]) -> str:
    """Return the table, in per cent."""
    heads = ["trained on", "labels' mIoU / P / R", "mIoU", "P", "R", "of full supervision", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    full = next((row for row in results if row["labels"] is None), None)
    for row in results:
        quality = (
            ""
            if row["labels"] is None
            else " / ".join(f"{100 * row['labels'][name]:.1f}" for name in MEASURES)
        )
        values = []
        for name in MEASURES:
            spread = row["std"][name]
            each = "" if spread is None else f" ± {100 * spread:.1f}"
            values.append(f"{100 * row[name]:.1f}{each}")
        seeds = ", ".join(map(str, row["seeds"]))
        cells = [row["title"], quality, *values, share_of_full(row, full), seeds]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_report(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Write the table and the figures of what there is."""
    command = f"python benchmarks/segmentation.py {shlex.join(sys.argv[1:])}"
    write_json(
        args.out / "segmentation.json",
        {"command": command, "machine": machine("cpu"), "rows": results},
    )
    text = f"```bash\n{command}\n```\n\n{markdown(results)}"
    with atomic_write(args.out / "segmentation.md") as handle:
        handle.write(text.encode())


def run(args: argparse.Namespace) -> None:
    """Train and measure what is not there yet; all rows at the first seed, then the others."""
    args.out.mkdir(parents=True, exist_ok=True)
    rows = list(rows_of(args))
    labels = {row: label_scores(args, row) for row in rows}
    cells: dict[Row, dict[int, dict[str, Any]]] = {row: {} for row in rows}
    for seed in args.seeds:
        for row in rows:
            console.print(f"{row.title}, seed {seed}", highlight=False)
            cells[row][seed] = cell(args, row, seed)
            done = [summary(each, found, labels[each]) for each, found in cells.items() if found]
            write_report(args, done)
    console.print(markdown(done), highlight=False)


def main() -> None:
    """Do what the command line says."""
    args = parser().parse_args()
    try:
        run(args)
    except InputError as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
