"""Tables of an ablation out of the results of its cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _ablation_plan import TABLES, Plan, Planned, Row, Table

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write, write_json

MEASURES = ("miou", "precision", "recall")
Cell = dict[str, Any]


def read_cells(out: Path) -> dict[tuple[str, str], dict[int, Cell]]:
    """Return all results in a folder, by variant and maps, then by seed."""
    cells: dict[tuple[str, str], dict[int, Cell]] = {}
    for path in sorted((out / "cells").glob("*.json")):
        cell = json.loads(path.read_text())
        cells.setdefault((cell["variant"], cell["maps"]), {})[cell["seed"]] = cell
    return cells


def read_backgrounds(path: Path | None, split: str) -> dict[str, float]:
    """Return background scores chosen on another split, by variant and maps.

    Args:
        path (Path, optional): The :obj:`ablation.json` of a run with :obj:`--tune`.
        split (str): The split that is reported.

    Raises:
        InputError: If it is not that, or was measured on the reported split.
    """
    if path is None:
        return {}
    try:
        tuned = json.loads(path.read_text())
        if tuned["data"]["split"] == split:
            raise InputError(
                f"--backgrounds {path} was measured on {split} itself: chosen there, a background "
                "score is an oracle's"
            )
        rows = [row for table in tuned["tables"] for row in table["rows"] if row["seeds"]]
        return {f"{row['variant']}/{row['maps']}": row["best_background"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--backgrounds {path} is not an ablation.json: {error}") from error


def table_rows(
    table: Table,
    plan: Plan,
    cells: Mapping[tuple[str, str], Mapping[int, Cell]],
    backgrounds: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Return the rows of one table.

    Every row is over the same seeds, those that all measured rows have; otherwise a difference
    between rows would be partly one between seeds. Rows that share none keep their own.
    """
    found: list[tuple[Row, Planned, Mapping[int, Cell]]] = []
    for row in table.rows:
        planned = plan.of(row)
        found.append((row, planned, cells.get((planned.variant, planned.maps), {})))
    measured = [set(by_seed) for _, _, by_seed in found if by_seed]
    common = set.intersection(*measured) if measured else set()
    rows = []
    for row, planned, by_seed in found:
        seeds = sorted(set(by_seed) & common or by_seed)
        key = f"{planned.variant}/{planned.maps}"
        summary = _summary([by_seed[seed] for seed in seeds], backgrounds.get(key))
        rows.append(
            {
                "label": row.label,
                "variant": planned.variant,
                "maps": planned.maps,
                "paper": row.paper or None,
                "seeds": seeds,
                **summary,
            }
        )
    return rows


def _summary(cells: Sequence[Cell], tuned: float | None) -> dict[str, Any]:
    """Return means and standard deviations over the cells of a row, one for each seed."""
    if not cells:
        return {}
    background = cells[0]["background"] if tuned is None else tuned

    sweeps = [{entry["background"]: entry for entry in cell["sweep"]} for cell in cells]
    common = sorted(set.intersection(*(set(sweep) for sweep in sweeps)))
    if background not in common:
        raise InputError(
            f"{cells[0]['variant']}, maps {cells[0]['maps']}: not measured at background score "
            f"{background}; want one of {common}"
        )
    fixed = [sweep[background] for sweep in sweeps]
    best = max(common, key=lambda score: mean(sweep[score]["miou"] for sweep in sweeps))
    seconds = [cell["seconds"] for cell in cells]
    trained = [s["train"] for s in seconds if s["train"] is not None and not s["resumed"]]
    return {
        "background": background,
        "background_from": "fixed" if tuned is None else "tuned on another split",
        **{name: mean(scores[name] for scores in fixed) for name in MEASURES},
        "std": {
            name: stdev(scores[name] for scores in fixed) if len(cells) > 1 else None
            for name in MEASURES
        },
        "oracle_miou": mean(sweep[best]["miou"] for sweep in sweeps),
        "best_background": best,  # an oracle's on this split; for --backgrounds on another
        "seconds": {
            "train": mean(trained) if trained else None,
            "maps": mean(s["maps"] for s in seconds),
        },
    }


def markdown(table: dict[str, Any]) -> str:
    """Return one table as Markdown."""
    paper = any(row["paper"] for row in table["rows"])
    heads = ["row", "mIoU", "P", "R", "background", "oracle mIoU (at)", "seeds"]
    heads += ["paper P / R"] if paper else []
    heads += ["train s", "maps s"]
    lines = [f"## {table['title']}", "", _line(heads), "|" + "---|" * len(heads)]
    for row in table["rows"]:
        if not row["seeds"]:
            line = [row["label"], *[""] * 5, "not run", *([row["paper"] or ""] if paper else [])]
            lines.append(_line([*line, "", ""]))
            continue
        seeds = row["seeds"]
        count = f"{len(seeds)}" if len(seeds) > 1 else f"one (seed {seeds[0]})"
        tuned = "" if row["background_from"] == "fixed" else " (tuned)"
        line = [row["label"]]
        line += [_spread(row[name], row["std"][name]) for name in MEASURES]
        line += [f"{row['background']:g}{tuned}"]
        line += [f"{100 * row['oracle_miou']:.1f} ({row['best_background']:g})", count]
        line += [row["paper"] or ""] if paper else []
        line += [_seconds(row["seconds"][name]) for name in ("train", "maps")]
        lines.append(_line(line))
    return "\n".join(lines) + "\n"


def write_report(out: Path, plan: Plan, settings: dict[str, Any], backgrounds: Path | None) -> None:
    """Write :obj:`ablation.md` and :obj:`ablation.json` from the cells that are there.

    Args:
        out (Path): The ablation's folder.
        plan (Plan): Its rows.
        settings (dict): Its command, data, machine and the names of the tables asked for.
        backgrounds (Path, optional): See :func:`read_backgrounds`.
    """
    cells, data = read_cells(out), settings["data"]
    chosen = read_backgrounds(backgrounds, data["split"])
    tables = []
    for table in TABLES:
        if table.name in settings["tables"]:
            rows = table_rows(table, plan, cells, chosen)
            tables.append({"name": table.name, "title": table.title, "rows": rows})
    content = {key: settings[key] for key in ("command", "data", "machine")}
    content["tables"] = tables
    write_json(out / "ablation.json", content)
    machine = ", ".join(f"{k} {v}" for k, v in settings["machine"].items())
    text = [
        "# Ablation",
        "",
        "```bash",
        settings["command"],
        "```",
        "",
        f"{data['images']} photos of `{data['split']}`, {len(data['classes'])} classes "
        f"({', '.join(data['classes'])}), tags from {data['tag_source']}. {machine}.",
        "",
        "mIoU has the background in it; P and R are means over the foreground classes. Per cent, "
        "mean ± standard deviation over the seeds whose number is said; a row of one seed says "
        "so. Label images by the constant background score given, which is the package's default "
        "unless it says *tuned*: best on other photos. The oracle column has the score that is "
        "best on these very masks and is no result. Nothing is refined. The paper's "
        "figures are of all 20 classes of VOC 2012 `train`.",
        "",
        *(markdown(table) for table in tables),
    ]
    with atomic_write(out / "ablation.md") as handle:
        handle.write(("\n".join(text).rstrip() + "\n").encode())


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"


def _spread(value: float, deviation: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
