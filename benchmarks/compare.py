"""Is ours slower than it was, beside its rivals?

    python benchmarks/edges.py --quick --out runs/bench
    python benchmarks/compare.py benchmarks/baselines/edges.json runs/bench/edges.json --limit 1.5

Milliseconds are those of a machine, ratios to rivals that were measured in turns much less so. The
slow-down of a case is the median over its rivals of how much our time over theirs has grown. Ends
with status 1 if a case that both files have is beyond the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEASURED = {"rival", "ms", "iqr ms", "ratio", "rounds", "peak MB", "saved MB"}
#: What is compared. Its variants ("ours, edges") are no rivals, nor are other parts of the package.
OURS, OWN = ("ours", "ComplementaryConv"), ("checks", "stitch")
Case = tuple[tuple[str, Any], ...]


def ratios(report: Mapping[str, Any]) -> dict[Case, dict[str, float]]:
    """Return for each case the time of each rival, as a multiple of one of them."""
    cases: dict[Case, dict[str, float]] = {}
    for row in report["cases"]:
        case = tuple((key, value) for key, value in row.items() if key not in MEASURED)
        cases.setdefault(case, {})[row["rival"]] = row["ratio"]
    return cases


def slow_downs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[Case, float]:
    """Return the slow-down of every case that both reports have, with a rival in common."""
    before, after = ratios(old), ratios(new)
    out = {}
    for case in before.keys() & after.keys():
        names = before[case].keys() & after[case].keys()
        ours = next((name for name in OURS if name in names), None)
        rivals = [name for name in names if not name.startswith((*OURS, *OWN))]
        if ours is not None and rivals:
            grown = [
                (after[case][ours] / after[case][name]) / (before[case][ours] / before[case][name])
                for name in rivals
            ]
            out[case] = statistics.median(grown)
    return out


def main() -> None:
    """Compare two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="JSON that a benchmark wrote")
    parser.add_argument("new", type=Path, help="the same benchmark, now")
    parser.add_argument("--limit", type=float, default=1.5, help="largest slow-down that passes")
    args = parser.parse_args()
    found = slow_downs(*(json.loads(path.read_text()) for path in (args.old, args.new)))
    if not found:
        sys.exit(f"{args.old} and {args.new} have no case in common")
    for case, value in sorted(found.items(), key=lambda item: -item[1]):
        said = ", ".join(f"{key} {value}" for key, value in case)
        print(f"{value:.2f}x  {said}")
    if max(found.values()) > args.limit:
        sys.exit(f"a case is more than {args.limit} times as slow as it was, beside its rivals")


if __name__ == "__main__":
    main()
