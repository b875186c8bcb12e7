"""A report of one or several runs: figures side by side, what differs, pictures, supervision."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write

#: Where the scores of a kind of result stand in a ``metrics.json``, and on which split they are.
RESULTS = {
    "cam": ("CAM, labels", "split"),
    "pgnn": ("P-GNN, labels", "split"),
    "segmentation": ("DeepLab-v2", "segmentation_split"),
    "segmenter": ("DeepLab-v2", "split"),
}
MEASURES = ("miou", "precision", "recall")
PICTURES = 3


class Run(NamedTuple):
    """What a finished run left."""

    folder: Path
    name: str
    config: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def results(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Title, scores and photos of each result that was measured."""
        for key, (title, split) in RESULTS.items():
            if key in self.metrics:
                scores = self.metrics[key]
                where = self.metrics[split] or "photos"
                yield title, scores, f"{where}, {scores['images']}"


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read the figures and settings of a folder that ``run``, ``demo`` or ``segment`` filled.

    Raises:
        InputError: If it holds no finished run.
    """
    path = Path(folder)
    try:
        config, metrics = (
            json.loads((path / f"{name}.json").read_text()) for name in ("config", "metrics")
        )
    except OSError as error:
        raise InputError(
            f"{path} holds no finished run of 'run', 'demo' or 'segment' ({error}); repeat its "
            "command to finish it"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: its figures cannot be read: {error}") from error
    run = Run(path, os.fspath(folder).rstrip("/"), config, metrics)
    if not isinstance(metrics, dict) or "supervision" not in metrics:
        raise InputError(f"{path / 'metrics.json'} is not of 'run', 'demo' or 'segment'")
    return run


def write_report(runs: Sequence[Run], path: Path) -> Path:
    """Write the report in Markdown; pictures are referred to, relative to it.

    Args:
        runs (sequence of Run): See :func:`read_run`; the first is what others are compared with.
        path (Path): The file.

    Raises:
        InputError: If there are no runs, or it cannot be written.
    """
    if not runs:
        raise InputError("A report needs the folder of at least one run.")
    parts = [_scores(runs), _classes(runs), _settings(runs), _supervision(runs)]
    parts.append(_pictures(runs, path.parent))
    text = "\n".join(["# Report\n", *filter(None, parts)])
    try:
        with atomic_write(path) as handle:
            handle.write(text.encode())
    except OSError as error:
        raise InputError(f"The report {path} cannot be written: {error}") from error
    return path


def _scores(runs: Sequence[Run]) -> str:
    rows = [
        [run.name, title, where, *(_percent(scores[name]) for name in MEASURES)]
        for run in runs
        for title, scores, where in run.results
    ]
    if not rows:
        return "Nothing was measured: no photos with true masks were given.\n"
    heads = ["run", "result", "photos", "mIoU", "P", "R"]
    note = "Per cent. mIoU has the background in it, P and R are means over the foreground.\n"
    return f"{note}\n{_table(heads, rows)}"


def _classes(runs: Sequence[Run]) -> str:
    columns = [
        (f"{run.name}: {title}", scores["per_class"])
        for run in runs
        for title, scores, _ in run.results
    ]
    names = list(dict.fromkeys(name for _, classes in columns for name in classes))
    rows = [
        [name, *(_percent(classes.get(name, {}).get("iou")) for _, classes in columns)]
        for name in names
    ]
    heads = ["class", *(title for title, _ in columns)]
    return f"## IoU of each class\n\n{_table(heads, rows)}" if rows else ""


def _settings(runs: Sequence[Run]) -> str:
    """The settings in which runs differ; all the others are in their ``config.json``."""
    flat = [dict(_flat(run.config)) for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    rows = [
        [f"`{name}`", *(_said(settings.get(name)) for settings in flat)]
        for name in names
        if any(settings.get(name) != flat[0].get(name) for settings in flat)
    ]
    heads = ["setting", *(run.name for run in runs)]
    return f"## Settings that differ\n\n{_table(heads, rows)}" if rows else ""


def _supervision(runs: Sequence[Run]) -> str:
    lines = [
        f"- {run.name} (seed {run.metrics['seed']}): {'; '.join(run.metrics['supervision'])}"
        for run in runs
    ]
    return "## What they were made from\n\n" + "\n".join(lines) + "\n"


def _pictures(runs: Sequence[Run], folder: Path) -> str:
    lines = []
    for run in runs:
        for part in (run.folder, run.folder / "segmentation"):
            sheets = sorted((part / "overlays").glob("sheet-*.png"))[:PICTURES]
            for sheet in sheets:
                link = Path(os.path.relpath(sheet, folder)).as_posix()
                lines += [f"![{run.name}, {part.name}]({link})", ""]
    return "\n".join(["## Pictures\n", *lines]) if lines else ""


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested settings by their dotted names; lists are leaves."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(part, f"{path}.{name}".strip("."))
    else:
        yield path, value


def _said(value: Any) -> str:
    return "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
