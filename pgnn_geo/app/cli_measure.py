"""The commands that check what is there, and measure and compare what the others have made."""

import sys
from pathlib import Path
from typing import Any

from pgnn_geo.app.config import ModelConfig
from pgnn_geo.app.evaluation import evaluate as evaluate_labels
from pgnn_geo.app.launch import join
from pgnn_geo.app.report import read_run, write_report
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import write_json
from pgnn_geo.io.run_folder import console, progress
from pgnn_geo.training.preflight import describe_backbone, describe_machine, find_problems
from pgnn_geo.viz.report import score_table

NETWORK = ModelConfig()


def evaluate(
    labels: str,
    root: str,
    out: str | None = None,
    **source: Any,
) -> None:
    """Score a folder of label images against true masks: IoU, precision, recall.

    Args:
        labels: Folder of label images ID.png.
        root: Folder of the data set.
        out: JSON file for the figures, if wanted.
        **source: Which photos, tags and classes.
    """
    photos = DataConfig(root=root, **source)
    if not photos.has_masks():
        raise InputError("There is nothing to measure against: pass --masks, or a split with masks")
    ranks = join()
    truth = photos.build(with_masks=True)
    scores = evaluate_labels(Path(labels), truth, progress, ranks).to_dict()
    console.print(score_table({"": scores}, f"{scores['images']} images"))
    if out is not None and ranks.is_first:
        write_json(out, scores)


def report(runs: list[str], out: str = "report.html") -> None:
    """Write one page on finished runs: figures side by side, what differs, every photo.

    Args:
        runs: Folders that "run", "demo" or "segment" filled; the first is the one to compare with.
        out: The page; its pictures go into a folder of its name beside it.
    """
    path = write_report([read_run(folder) for folder in runs], Path(out), progress)
    console.print(f"report: {path}")


def doctor(root: str | None = None, network: ModelConfig = NETWORK, **source: Any) -> None:
    """Check packages, weights and (with --root) every photo, tag and mask; say what to fix.

    Args:
        root: Folder of the data set; without it only packages and weights are checked.
        network: The network whose weights are checked.
        **source: Which photos, tags and classes.
    """
    for line in [*describe_machine(), *describe_backbone(network)]:
        console.print(line, highlight=False, soft_wrap=True)
    photos = None if root is None else DataConfig(root=root, **source)
    problems = find_problems(photos, network)
    if not problems:
        console.print("no problem found")
    exit_with(problems)


def exit_with(problems: list[str]) -> None:
    """List problems and end with status 1, if there are any."""
    for problem in problems:
        console.print(f"problem: {problem}", highlight=False, soft_wrap=True)
    if problems:
        console.print(f"{len(problems)} problem(s)")
        sys.exit(1)
