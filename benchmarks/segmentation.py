"""What is a segmentation network worth that was trained on pseudo-labels, beside full supervision?

    python benchmarks/segmentation.py --root VOCdevkit/VOC2012 --out runs/segmentation \
        --labels.pgnn runs/voc/pgnn/labels --labels.cam runs/voc/cam/labels \
        --mutual '["off", "tags"]' --settings '{"": {}, "slow": {"lr": 1e-4}}'

Trains DeepLab-v2 once per seed and setting on the true masks, and on each folder of labels with
each rule of the mutual complement and each share of --uncertain; measures all of them on
--eval_split, and the labels on the photos that they are of. Rows differ in nothing but what their
title says: the same seed is the same first weights, order, windows and dropout. So they are
compared seed by seed: with full supervision of the same setting, and with the first row of labels.
A training is a folder of its own in OUT: a run that was cut off goes on where it stopped. Outputs
of the frozen stages are computed once for all. OUT/segmentation.md and .json are written anew after
each training.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

from _common import machine
from _paired import Difference, paired_difference
from _segmentation_cells import (
    MEASURES,
    MutualName,
    ProtocolName,
    Row,
    by_protocol,
    cell,
    label_scores,
    own_masks,
    with_setting,
)

from pgnn_geo.app import stage2
from pgnn_geo.app.cli_parser import run_function
from pgnn_geo.app.config import SEGMENTATION_NETWORK, Stage2Config
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write, write_json
from pgnn_geo.io.run_folder import console
from pgnn_geo.options import Changes
from pgnn_geo.training.segmentation_config import (
    RECIPES,
    RecipeName,
    SegmentationTrainingConfig,
)

NONE: dict[str, str] = {}
OFF: list[MutualName] = ["off"]
CERTAIN: list[float | None] = [0.5]
PSEUDO = [0.0]
SEEDS = list(range(8))
ONE: list[ProtocolName] = []
SETTINGS: dict[str, dict[str, Any]] = {"": {}}
CHANGES = "Values that take the place of the recipe's"


def rows_of(
    labels: dict[str, str],
    rules: Sequence[MutualName],
    shares: Sequence[float | None],
    mixed: Sequence[float],
    truth: bool,
    settings: Sequence[str],
) -> list[Row]:
    """Return what to train on, full supervision first."""
    full = [Row("true masks", stage2.TRUTH, setting=each) for each in settings if truth]
    return full + [
        Row(name, folder, rule, share, drawn, each)
        for name, folder in labels.items()
        for rule in rules
        for share in shares
        for drawn in mixed
        for each in settings
    ]


def summary(row: Row, cells: dict[int, dict[str, Any]], labels: dict[str, Any] | None) -> Any:
    """Return means and spreads over the seeds of one row."""
    own = [cell["own"] for cell in cells.values() if "own" in cell]
    values = {name: [cells[seed]["segmenter"][name] for seed in sorted(cells)] for name in MEASURES}
    return {
        "title": row.title,
        "setting": row.setting,
        "seeds": sorted(cells),
        "labels": labels,
        **{name: mean(each) for name, each in values.items()},
        "std": {name: stdev(each) if len(each) > 1 else None for name, each in values.items()},
        "by_seed": {
            name: dict(zip(sorted(cells), each, strict=True)) for name, each in values.items()
        },
        "protocols": {
            name: {seed: cells[seed]["protocols"][name] for seed in sorted(cells)}
            for name in next(iter(cells.values())).get("protocols", ())
        },
        "own": {**own[0], "network": mean(each["network"] for each in own)} if own else None,
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


def beside(row: dict[str, Any], other: dict[str, Any] | None) -> str:
    """Return how far a row's mIoU is from another's in points, with the interval."""
    if other is None or other is row:
        return ""
    gap = paired_difference(row["by_seed"]["miou"], other["by_seed"]["miou"])
    return "" if gap is None else in_points(gap)


def own_of(row: dict[str, Any]) -> str:
    """Return the mIoU of labels on training photos, and that of the masks of what learnt them."""
    if row["own"] is None:
        return ""
    labels, network = row["own"]["labels"], f"{100 * row['own']['network']:.1f}"
    return network if labels is None else f"{100 * labels:.1f}, {network}"


def in_points(gap: Difference) -> str:
    """Return a difference of two shares in per cent."""
    half = "" if gap.half is None else f" ± {100 * gap.half:.1f}"
    return f"{100 * gap.mean:+.1f}{half}"


def markdown(results: list[dict[str, Any]]) -> str:
    """Return the table, in per cent."""
    heads = ["trained on", "labels' mIoU / P / R", "mIoU", "P", "R", "of full supervision"]
    heads += ["minus full supervision", "minus the first labels", "labels, own masks", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    full = {row["setting"]: row for row in results if row["labels"] is None}
    first = next((row for row in results if row["labels"] is not None), None)
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
        best, seeds = full.get(row["setting"]), ", ".join(map(str, row["seeds"]))
        against = [share_of_full(row, best), beside(row, best)]
        against += ["" if row["labels"] is None else beside(row, first), own_of(row)]
        lines.append("| " + " | ".join([row["title"], quality, *values, *against, seeds]) + " |")
    note = (
        "± in mIoU, P and R: standard deviation; in differences: 95 % interval of paired seeds. "
        "Own masks: mIoU of the labels on photos that were learnt, and of the network's masks of "
        "them, tags known."
    )
    return "\n".join([*lines, "", note]) + "\n" + protocol_table(results)


def protocol_table(results: list[dict[str, Any]]) -> str:
    """Return the mIoU by each further protocol, and its share of full supervision's by the same."""
    names = list(results[0]["protocols"])
    if not names:
        return ""
    lines = ["", "| trained on | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in results:
        full = [
            each for each in results if (each["labels"], each["setting"]) == (None, row["setting"])
        ]
        values = []
        for name in names:
            own = row["protocols"][name]
            seeds = own.keys() & full[0]["protocols"][name].keys() if full else ()
            share = ""
            if seeds:
                best = mean(full[0]["protocols"][name][seed] for seed in seeds)
                share = f" ({100 * mean(own[seed] for seed in seeds) / best:.1f} %)"
            values.append(f"{100 * mean(own.values()):.1f}{share}")
        lines.append("| " + " | ".join([row["title"], *values]) + " |")
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
    train: Annotated[dict[str, Any], Changes(SegmentationTrainingConfig, CHANGES)],
    network: Annotated[dict[str, Any], SEGMENTATION_NETWORK],
    labels: dict[str, str] = NONE,
    truth: bool = True,
    mutual: list[MutualName] = OFF,
    mutual_start: int = 1,
    mutual_confidence: float | None = None,
    uncertain: list[float | None] = CERTAIN,
    true_masks: list[float] = PSEUDO,
    split: str = "train_aug",
    eval_split: str = "val",
    classes: str | None = None,
    seeds: list[int] = SEEDS,
    recipe: RecipeName = "short",
    settings: dict[str, dict[str, Any]] = SETTINGS,
    own: int | None = None,
    protocols: list[ProtocolName] = ONE,
) -> None:
    """Train and measure what is not there yet; all rows at the first seed, then the others.

    Args:
        root: The VOC2012 folder.
        out: Folder of the results.
        train: Values that take the place of the recipe's.
        network: Arguments of the network.
        labels: Folders of label images, --labels.NAME FOLDER for each.
        truth: Whether to train on the true masks as well: full supervision.
        mutual: Rules of the mutual complement, each tried on each folder of labels.
        mutual_start: First epoch after which labels are rewritten.
        mutual_confidence: Probability from which on a prediction rewrites a label.
        uncertain: Shares of the background score above which background is not learnt, each tried
            on each folder of labels; null to learn all of it.
        true_masks: Shares of the photos that are learnt from true masks, each tried on each folder
            of labels.
        split: Photos to train on.
        eval_split: Photos to measure on.
        classes: Comma-separated names that restrict the task.
        seeds: Seeds of training.
        recipe: Recipe of stage 2.
        settings: Further such values by name, a row each on every kind of labels.
        own: Every how manieth training photo is predicted as well, with its tags known.
        protocols: Further ways to predict the photos that are measured: "par", refined along the
            edges of the photo; "scales", the mean of three scales and their mirror images, or
            "scales-par", both.
    """
    photos, folder = DataConfig("voc", root, split, classes), Path(out)
    common = RECIPES[recipe].changed(**train)
    base = Stage2Config(eval_split, network, common, "off", mutual_start, mutual_confidence)
    bases = {
        name: replace(base, train=with_setting(common, each)) for name, each in settings.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(labels, mutual, uncertain, true_masks, truth, list(settings))
    quality = {row: label_scores(photos, row) for row in rows}
    cells: dict[Row, dict[int, dict[str, Any]]] = {row: {} for row in rows}
    results: list[dict[str, Any]] = []
    for seed in seeds:
        for row in rows:
            console.print(f"{row.title}, seed {seed}", highlight=False)
            metrics = cell(bases[row.setting], photos, row, seed, folder)
            path = folder / f"{row.folder}-seed{seed}"
            if own is not None:
                metrics = {**metrics, "own": own_masks(photos, row, path, own)}
            if protocols:
                measured = replace(photos, split=eval_split)
                metrics = {**metrics, "protocols": by_protocol(measured, path, protocols)}
            cells[row][seed] = metrics
            results = [summary(each, cells[each], quality[each]) for each in rows if cells[each]]
            write_report(folder, results)
    shutil.rmtree(folder / "stems", ignore_errors=True)  # gigabytes, the same for all
    console.print(markdown(results), highlight=False)


def main() -> None:
    """Do what the command line says."""
    try:
        run_function(compare)
    except InputError as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
