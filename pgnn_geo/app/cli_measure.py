"""The commands that check what is there, and measure and compare what the others have made."""

import sys
from pathlib import Path
from typing import Annotated, Any

from pgnn_geo.app.config import RunConfig
from pgnn_geo.app.cost import describe_cost, measure_rates, predict_cost
from pgnn_geo.app.evaluation import evaluate as evaluate_labels
from pgnn_geo.app.report import read_run, write_report
from pgnn_geo.datasets.config import DataConfig, PhotoOptions
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import write_json
from pgnn_geo.io.run_folder import console, join, progress
from pgnn_geo.metrics import ErrorBreakdown
from pgnn_geo.nn.backbones import BackboneSource
from pgnn_geo.options import Fields
from pgnn_geo.training.preflight import describe_backbone, describe_machine, find_problems
from pgnn_geo.viz.report import below, error_table, score_table

_STAGE1 = ("flow", "network", "features", "evidence", "labels")


def evaluate(
    labels: str,
    root: str,
    photos: PhotoOptions,
    out: str | None = None,
    beside: str | None = None,
    errors: bool = False,
) -> None:
    """Score a folder of label images against true masks: IoU, precision, recall.

    Args:
        labels: Folder of label images ID.png.
        root: Folder of the data set.
        photos: Which photos, tags and classes.
        out: JSON file for the figures, if wanted.
        beside: Another folder of label images, such as those of the CAM, to compare each class.
        errors: Whether to say what each kind of error costs: boundary, missed, spill, confusion.
    """
    data = DataConfig(root=root, **photos)
    if not data.has_masks():
        raise InputError("There is nothing to measure against: pass --masks, or a split with masks")
    ranks = join()
    truth = data.build(with_masks=True)
    breakdown = ErrorBreakdown(len(truth.classes), truth.classes) if errors else None
    scores = evaluate_labels(Path(labels), truth, progress, ranks, breakdown).to_dict()
    columns, record = {"": scores}, dict(scores)
    if beside is not None:
        other = evaluate_labels(Path(beside), truth, progress, ranks).to_dict()
        columns["beside"] = record["beside"] = other
    console.print(score_table(columns, f"{scores['images']} images"))
    if beside is not None:
        lost = below(scores, columns["beside"]).items()
        names = ", ".join(f"{name} (-{100 * loss:.1f})" for name, loss in lost) or "none"
        said = f"classes more than a point of IoU below {beside}: {names}"
        console.print(said, highlight=False, soft_wrap=True)
    if breakdown is not None:
        record["errors"] = breakdown.compute().to_dict()
        console.print(error_table(record["errors"]))
    if out is not None and ranks.is_first:
        write_json(out, record)


def report(runs: list[str], out: str = "report.html") -> None:
    """Write one page on finished runs: figures side by side, what differs, every photo.

    Args:
        runs: Folders that "run", "demo" or "segment" filled; the first is the one to compare with.
        out: The page; its pictures go into a folder of its name beside it.
    """
    path = write_report([read_run(folder) for folder in runs], Path(out), progress)
    console.print(f"report: {path}")


def doctor(
    photos: PhotoOptions,
    stage1: Annotated[dict[str, Any], Fields(RunConfig, only=_STAGE1)],
    root: str | None = None,
    recipe: str = "best",
) -> None:
    """Check packages, weights and (with --root) all photos; say what to fix, what a run takes.

    Args:
        photos: Which photos, tags and classes.
        stage1: How labels are made, see "run"; what stage 1 takes depends on it, and is predicted
            for the frozen flow.
        root: Folder of the data set; without it only packages and weights are checked.
        recipe: See "run": where options come from that are not given.
    """
    flow, network, *settings = (stage1[name] for name in _STAGE1)
    source = BackboneSource(network["backbone"], network["weights"])
    for line in [*describe_machine(), *describe_backbone(source)]:
        console.print(line, highlight=False, soft_wrap=True)
    data = None if root is None else DataConfig(root=root, **photos)
    problems = find_problems(data, source)
    lines = []
    if data is not None and not problems and flow == "frozen" and source.weights is not None:
        try:
            work, rates = measure_rates(data.build(), source, *settings)
            lines = describe_cost(work, predict_cost(work, rates))
        except InputError as error:
            problems.append(str(error))
    for line in [*([] if problems else ["no problem found"]), *lines]:
        console.print(line, highlight=False, soft_wrap=True)
    exit_with(problems)


def exit_with(problems: list[str]) -> None:
    """List problems and end with status 1, if there are any."""
    for problem in problems:
        console.print(f"problem: {problem}", highlight=False, soft_wrap=True)
    if problems:
        console.print(f"{len(problems)} problem(s)")
        sys.exit(1)
