"""How long does selective search take, and what does it find?

Each way of proposing is run on the same photos: boxes per photo, seconds of processor time and of
waiting per photo, and the share of the true boxes (around the components of the true masks) that
some proposal overlaps by half, and by 0.7. The masks are read for that share only.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

from pgnn_geo.boxes import ProposalConfig, proposal_recall, selective_search, true_boxes
from pgnn_geo.datasets import VOC2012
from pgnn_geo.io.files import atomic_write

HEAD = "| mode | long side | boxes (median) | processor s | s | recall 0.5 | recall 0.7 |"


def measure(
    images: list[torch.Tensor], truth: list[torch.Tensor], config: ProposalConfig, workers: int
) -> dict[str, Any]:
    """One row of the table."""
    waiting, busy = perf_counter(), process_time()
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(partial(selective_search, config=config), images))
    busy, waiting = process_time() - busy, perf_counter() - waiting
    return {
        "mode": config.mode,
        "side": config.side,
        "boxes": statistics.median(map(len, found)),
        "processor_seconds": busy / len(images),
        "seconds": waiting / len(images),
        "recall_0.5": proposal_recall(found, truth, 0.5),
        "recall_0.7": proposal_recall(found, truth, 0.7),
    }


def line(row: dict[str, Any]) -> str:
    """The row in Markdown."""
    return (
        f"| {row['mode']} | {row['side'] or 'as it is'} | {row['boxes']:.0f} | "
        f"{row['processor_seconds']:.2f} | {row['seconds']:.2f} | "
        f"{100 * row['recall_0.5']:.1f} | {100 * row['recall_0.7']:.1f} |"
    )


def main() -> None:
    """Runs the cases."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--root", required=True, help="folder of VOC 2012")
    options.add_argument("--split", default="train")
    options.add_argument("--classes", help="names with commas; all if not given")
    options.add_argument("--photos", type=int, default=60, help="evenly spread over the split")
    options.add_argument("--workers", type=int, default=2, help="photos at a time")
    options.add_argument("--quick", action="store_true", help="the two cheapest cases only")
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = options.parse_args()
    dataset = VOC2012(args.root, args.split, classes=args.classes, with_masks=True)
    count = min(args.photos, len(dataset))
    dataset = dataset.subset(torch.linspace(0, len(dataset) - 1, count).round().long().tolist())
    images = [dataset[i]["image"] for i in range(count)]
    truth = [boxes.boxes for boxes in true_boxes(dataset).values()]
    print(f"{count} photos, {sum(map(len, truth))} true boxes, {args.workers} at a time\n\n{HEAD}")
    print(divider := "|---" * HEAD.count(" |") + "|")
    cases = [ProposalConfig(side=side) for side in (200, 300, 400, None)]
    cases += [ProposalConfig("quality", side) for side in (200, 300, 400)]
    rows = []
    for config in cases[:2] if args.quick else cases:
        rows.append(measure(images, truth, config, args.workers))
        print(line(rows[-1]), flush=True)
    with atomic_write(args.out / "proposals.md") as handle:
        handle.write("\n".join([HEAD, divider, *map(line, rows), ""]).encode())
    with atomic_write(args.out / "proposals.json") as handle:
        handle.write((json.dumps({"photos": count, "rows": rows}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
