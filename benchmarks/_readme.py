"""Tables in a page, written between markers and not by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import Report

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write

README = Path(__file__).parent / "README.md"
MEASURED = ("rival", "ms", "iqr ms", "ratio", "rounds", "peak MB", "saved MB")


def side_by_side(cases: Sequence[Mapping[str, Any]]) -> str:
    """A row for each case: milliseconds of the reference, and the others as multiples of it.

    Args:
        cases: Rows of :attr:`Report.cases`, those of a case one after the other, the reference
            first.
    """
    keys = [key for key in cases[0] if key not in (*MEASURED, "what")]
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in cases:
        times = rows.setdefault(tuple(row[key] for key in keys), {})
        times[row["rival"]] = f"{row['ratio']:.2f}x" if times else f"{row['ms']:.3g} ms"
    rivals = list(dict.fromkeys(row["rival"] for row in cases))
    lines = ["| " + " | ".join([*keys, *rivals]) + " |", "|" + "---|" * (len(keys) + len(rivals))]
    for values, times in rows.items():
        cells = [*map(str, values), *(times.get(rival, "") for rival in rivals)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replace_marked(path: Path, name: str, text: str | None) -> None:
    """Put text into a page, where `<!-- NAME -->` begins its place and `<!-- end -->` ends it.

    Args:
        path: The page.
        name: What the place is called.
        text: The text; without it the page is only looked at.

    Raises:
        InputError: If there is no such page, or no such place in it.
    """
    marker = f"<!-- {name} -->"
    place = re.compile(re.escape(marker) + r".*?<!-- end -->", re.DOTALL)
    page = path.read_text() if path.is_file() else ""
    if not place.search(page):
        raise InputError(f"{path} has no place for a table: {marker} ... <!-- end -->")
    if text is not None:
        new = f"{marker}\n{text.strip()}\n<!-- end -->"
        with atomic_write(path) as handle:
            handle.write(place.sub(lambda _: new, page, count=1).encode())


def paste(report: Report, path: Path = README) -> None:
    """Put the tables of a report into the README, where `<!-- NAME WHAT -->` begins their place.

    Raises:
        InputError: If a table has no place.
    """
    for what in dict.fromkeys(row["what"] for row in report.cases):
        table = side_by_side([row for row in report.cases if row["what"] == what])
        on = f"{report.machine['threads']} threads of {report.machine['cpu']}, "
        on += f"torch {report.machine['torch']}, load {report.machine['load']:.1f}"
        replace_marked(path, f"{report.name} {what}", f"{table}\n\n({on})")
