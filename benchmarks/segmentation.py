"""What is a segmentation network worth that was trained on pseudo-labels, beside full supervision?

    python benchmarks/segmentation.py --root VOCdevkit/VOC2012 --out runs/segmentation \
        --labels.pgnn runs/voc/pgnn/labels --labels.cam runs/voc/cam/labels \
        --mutual '["off", "tags"]' --seeds '[0, 1, 2]'

Trains DeepLab-v2 once per seed on the true masks, and on each folder of labels with each rule of
the mutual complement; measures all of them on --eval-split, and the labels on the photos that they
are of. A training is a folder of its own in OUT: a run that was cut off goes on where it stopped.
OUT/segmentation.md and .json are written anew after each.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, NamedTuple

from _common import machine
from jsonargparse import auto_cli

from pgnn_geo.app import stage2
from pgnn_geo.app.cli_parser import Parser
from pgnn_geo.app.config import SegmentationNetworkConfig, Stage2Config
from pgnn_geo.app.config_changes import SegmentationTrainingConfigChanges, recipe_with
from pgnn_geo.app.evaluation import evaluate
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write, write_json
from pgnn_geo.io.run_folder import console
from pgnn_geo.training.segmentation import RecipeName

MutualName = Literal["off", "literal", "tags"]
MEASURES = ("miou", "precision", "recall")
NONE: dict[str, str] = {}
OFF: list[MutualName] = ["off"]
SEEDS = [0, 1, 2]
NETWORK, RECIPE = SegmentationNetworkConfig(), SegmentationTrainingConfigChanges()


class Row(NamedTuple):
    """What a network is trained on, and how labels are rewritten on the way."""

    name: str
    labels: str
    mutual: MutualName

    @property
    def title(self) -> str:
        """How tables call it."""
        return (
            self.name if self.mutual == "off" else f"{self.name}, mutual complement {self.mutual}"
        )


def rows_of(labels: dict[str, str], rules: Sequence[MutualName], truth: bool) -> list[Row]:
    """Return what to train on, full supervision first."""
    full = [Row("true masks", stage2.TRUTH, "off")] if truth else []
    return full + [Row(name, folder, rule) for name, folder in labels.items() for rule in rules]


def cell(base: Stage2Config, photos: DataConfig, row: Row, seed: int, out: Path) -> dict[str, Any]:
    """Train and measure one network, unless that is done; return its metrics."""
    config = replace(base, mutual=row.mutual, train=replace(base.train, seed=seed))
    if row.mutual == "off":  # what has no bearing must not tell folders apart
        config = replace(config, mutual_start=1, mutual_confidence=None)
    folder = f"{row.name}-{row.mutual}-seed{seed}".replace(" ", "-")
    return stage2.train_and_measure(config.on(photos, row.labels), out / folder, out / "stems")


def label_scores(photos: DataConfig, row: Row) -> dict[str, Any] | None:
    """Return the scores of the labels themselves on the photos that they are of."""
    if row.labels == stage2.TRUTH:
        return None
    scores = evaluate(Path(row.labels), photos.build(with_masks=True)).to_dict()
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


def write_report(out: Path, results: list[dict[str, Any]]) -> None:
    """Write the table and the figures of what there is."""
    command = f"python benchmarks/segmentation.py {shlex.join(sys.argv[1:])}"
    content = {"command": command, "machine": machine("cpu"), "rows": results}
    write_json(out / "segmentation.json", content)
    text = f"```bash\n{command}\n```\n\n{markdown(results)}"
    with atomic_write(out / "segmentation.md") as handle:
        handle.write(text.encode())


def compare(
    root: str,
    out: str,
    labels: dict[str, str] = NONE,
    truth: bool = True,
    mutual: list[MutualName] = OFF,
    mutual_start: int = 1,
    mutual_confidence: float | None = None,
    split: str = "train_aug",
    eval_split: str = "val",
    classes: str | None = None,
    seeds: list[int] = SEEDS,
    recipe: RecipeName = "short",
    network: SegmentationNetworkConfig = NETWORK,
    train: SegmentationTrainingConfigChanges = RECIPE,
) -> None:
    """Train and measure what is not there yet; all rows at the first seed, then the others.

    Args:
        root: The VOC2012 folder.
        out: Folder of the results.
        labels: Folders of label images, --labels.NAME FOLDER for each.
        truth: Whether to train on the true masks as well: full supervision.
        mutual: Rules of the mutual complement, each tried on each folder of labels.
        mutual_start: First epoch after which labels are rewritten.
        mutual_confidence: Probability from which on a prediction rewrites a label.
        split: Photos to train on.
        eval_split: Photos to measure on.
        classes: Comma-separated names that restrict the task.
        seeds: Seeds of training.
        recipe: Recipe of stage 2.
        network: The network.
        train: Values that take the place of the recipe's; null leaves the recipe's.
    """
    photos, folder = DataConfig("voc", root, split, classes), Path(out)
    settings = recipe_with(recipe, train)
    base = Stage2Config(eval_split, network, settings, "off", mutual_start, mutual_confidence)
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(labels, mutual, truth)
    quality = {row: label_scores(photos, row) for row in rows}
    cells: dict[Row, dict[int, dict[str, Any]]] = {row: {} for row in rows}
    results: list[dict[str, Any]] = []
    for seed in seeds:
        for row in rows:
            console.print(f"{row.title}, seed {seed}", highlight=False)
            cells[row][seed] = cell(base, photos, row, seed, folder)
            results = [summary(each, cells[each], quality[each]) for each in rows if cells[each]]
            write_report(folder, results)
    shutil.rmtree(folder / "stems", ignore_errors=True)  # gigabytes, the same for all
    console.print(markdown(results), highlight=False)


def main() -> None:
    """Do what the command line says."""
    try:
        auto_cli(compare, as_positional=False, parser_class=Parser)
    except InputError as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
