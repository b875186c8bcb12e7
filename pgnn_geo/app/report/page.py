"""The page itself: data as JSON in one file of HTML, pictures in a folder beside it."""

import json
import re
from collections.abc import Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pgnn_geo.app.report.gallery import explained_script, galleries, write_gallery
from pgnn_geo.app.report.runs import RESULTS, Run, settings_that_differ
from pgnn_geo.errors import InputError
from pgnn_geo.features import Progress, no_progress
from pgnn_geo.io.files import atomic_folder, atomic_write, mark_results
from pgnn_geo.io.masks import voc_palette

#: Parts of the page, in the order in which they are put into it.
SCRIPTS = ("figures.js", "gallery.js", "viewer.js", "explorer.js")


def write_report(runs: Sequence[Run], path: Path, progress: Progress = no_progress) -> Path:
    """Write the report of runs: a page, and in a folder of its name beside it small pictures.

    Args:
        runs (sequence of Run): See :func:`read_run`; the first is what others are compared with.
        path (Path): The page, which ends in ``.html``.
        progress (callable, optional): Progress display.

    Raises:
        InputError: If there are no runs, the page has another ending, or it cannot be written.
    """
    if not runs:
        raise InputError("A report needs the folder of at least one run.")
    if path.suffix != ".html":
        raise InputError(f"The report {path} is a page: want a name that ends in .html")
    pictures = path.with_suffix("")
    try:
        with atomic_folder(pictures, sync=False) as folder:
            mark_results(folder)
            page = _page(runs, folder, pictures.name, progress)
        with atomic_write(path) as handle:
            handle.write(page.encode())
    except OSError as error:
        raise InputError(f"The report {path} cannot be written: {error}") from error
    return path


def _page(runs: Sequence[Run], folder: Path, name: str, progress: Progress) -> str:
    """Return the page, having written the pictures it shows into :obj:`folder`."""
    entries: list[dict[str, Any]] = []
    notes: list[str] = []
    intervals: dict[tuple[int, str], list[float] | None] = {}
    for number, run in enumerate(runs):
        shown, problems = galleries(run)
        notes += problems
        for gallery in shown:
            place = str(len(entries))
            entry, found = write_gallery(gallery, folder / place, progress)
            intervals |= {(number, key): value for key, value in found.items()}
            entry |= {"run": number, "folder": f"{name}/{place}", "explained": False}
            entry["classes"] = list(gallery.photos.classes)
            if (edges := explained_script(gallery)) is not None:
                script = f"(window.pgnnExplained ||= {{}})[{place}] = {edges};\n"
                (folder / place / "explained.js").write_text(script)
                names = [(each["images"][0], each["label"]) for each in json.loads(edges)]
                entry["explained"] = names
            entries.append(entry)
    data = {
        "version": version("pgnn-geo"),
        "runs": [_run(number, run, intervals) for number, run in enumerate(runs)],
        "settings": settings_that_differ(runs),
        "galleries": entries,
        "notes": notes,
        "palette": voc_palette().tolist(),
    }
    return _filled(data)


def _run(
    number: int, run: Run, intervals: dict[tuple[int, str], list[float] | None]
) -> dict[str, Any]:
    results = [
        {
            "key": key,
            "title": RESULTS[key].title,
            "photos": photos,
            "scores": scores,
            "interval": intervals.get((number, key)),
        }
        for key, scores, photos in run.results
    ]
    return {
        "name": run.name,
        "seed": run.metrics.get("seed"),
        "supervision": run.metrics["supervision"],
        "results": results,
        "curves": run.curves(),
        "cost": run.cost,
    }


def _filled(data: dict[str, Any]) -> str:
    """Return the template with its style, scripts and data."""
    files = resources.files(__package__)
    # What looks like the end of a script, or the start of a comment, would be taken for one.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    parts = {
        "style": (files / "report.css").read_text(encoding="utf-8"),
        "data": text,
        "script": "\n".join((files / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    template = (files / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: parts[match[1]], template)
