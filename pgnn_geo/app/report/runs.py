"""What finished runs left: figures, settings, curves, cost."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pgnn_geo.errors import InputError

#: Points of a learning curve, of which a longer one keeps every n-th.
POINTS = 200


class Kind(NamedTuple):
    """A kind of result: where its scores stand in ``metrics.json`` and its label images lie."""

    title: str
    split: str  #: key of the split it was measured on
    labels: str  #: folder of the label images


#: The kinds of results, by their keys in a ``metrics.json``.
RESULTS = {
    "cam": Kind("CAM, labels", "split", "cam/labels"),
    "pgnn": Kind("P-GNN, labels", "split", "pgnn/labels"),
    "segmentation": Kind("segmenter", "segmentation_split", "segmentation/predictions"),
    "segmenter": Kind("segmenter", "split", "predictions"),
}


class Run(NamedTuple):
    """What a finished run left."""

    folder: Path
    name: str
    config: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def results(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Key in :obj:`RESULTS`, scores and photos of each result that was measured."""
        for key, kind in RESULTS.items():
            if key in self.metrics:
                scores = self.metrics[key]
                where = self.metrics[kind.split] or "photos"
                yield key, scores, f"{where}, {scores['images']}"

    @property
    def cost(self) -> list[dict[str, Any]]:
        """What each stage cost, see :func:`~pgnn_geo.io.run_folder.recording`."""
        path = self.folder / "cost.json"
        return json.loads(path.read_text()) if path.is_file() else []

    def curves(self) -> list[dict[str, Any]]:
        """Learning curves by training and quantity, from TensorBoard's logs."""
        found = sorted(self.folder.glob("**/tensorboard"))
        return [
            {"training": path.parent.name, "quantity": name, "points": points}
            for path in found
            for name, points in _scalars(path)
        ]


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


def settings_that_differ(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the settings in which runs differ, with the value in each run."""
    flat = [dict(_flat(run.config)) for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    return [
        (name, [_said(settings.get(name)) for settings in flat])
        for name in names
        if any(settings.get(name) != flat[0].get(name) for settings in flat)
    ]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested settings by their dotted names; lists are leaves."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(part, f"{path}.{name}".strip("."))
    else:
        yield path, value


def _said(value: Any) -> str:
    return "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def _scalars(folder: Path) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """Yield the quantities of a log that are means of an epoch: step and value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    for tag in log.Tags()["scalars"]:
        if tag == "epoch" or tag.endswith("_step"):
            continue
        points = [(event.step, event.value) for event in log.Scalars(tag)]
        every = -(-len(points) // POINTS)
        yield tag.removesuffix("_epoch"), points[::every]
