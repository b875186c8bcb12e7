"""The table of `gpu.sh`: what the stages took, and the layer beside its rivals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _readme import side_by_side


def main(out: Path) -> None:
    """Print it."""
    (conv,) = (json.loads(path.read_text()) for path in (out / "conv").glob("*.json"))
    (count,) = (json.loads(path.read_text()) for path in (out / "cost").glob("counts-*.json"))
    config = json.loads((out / "run" / "config.json").read_text())
    metrics = json.loads((out / "run" / "metrics.json").read_text())
    card = count["machine"].get("gpu", "no GPU: a dry run, whose figures say nothing")
    print(f"{card}; torch {count['machine']['torch']}, {count['machine']['cpu']}\n")
    rows: list[tuple[str, int, str, float, float]] = []
    for path in (out / "run" / "cost.json", out / "run" / "segmentation" / "cost.json"):
        for stage in json.loads(path.read_text()) if path.is_file() else ():
            name, photos = config["network"]["backbone"], metrics["images"]
            rows.append((name, photos, stage["stage"], stage["seconds"], stage["peak_memory"] or 0))
    for stage in count["stages"]:
        seconds, memory = stage["seconds"][1], stage["memory"][1]
        rows.append((count["setting"], count["photos"], stage["stage"], seconds, memory))
    print("| backbone | photos | stage | seconds | memory of the process |\n|---|---|---|---|---|")
    for name, photos, stage_name, seconds, memory in rows:
        print(f"| {name} | {photos:,} | {stage_name} | {seconds:,.1f} | {memory / 1e9:.2f} GB |")
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in conv["cases"]:
        row.pop("nodes per group", None)  # for its plot
        by_kind.setdefault(row["what"], []).append(row)
    for what, cases in by_kind.items():
        print(f"\nThe layer, {what}:\n\n{side_by_side(cases)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
