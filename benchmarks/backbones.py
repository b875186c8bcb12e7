"""Which strides does a backbone have, and what do memory and time come to at each?

    python benchmarks/backbones.py --threads 1 --readme

Each backbone is built with random weights, which change neither, in a process of its own, so that
its peak of memory is its own. Photos go through it one by one, as `frozen_features` has them on a
CPU, without their mirror images: with those the frozen flow takes twice as long. The peak is that
of each stride, without the time in which the network was built (Linux; elsewhere with it).

Writes `backbones.json` to OUT, where those that are not measured again stay as they are, and with
`--readme` the table into docs/guide/backbones.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from _common import machine, parser
from _readme import replace_marked

from pgnn_geo.io.files import write_json
from pgnn_geo.io.run_folder import peak_memory
from pgnn_geo.nn.backbones import build_backbone

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "backbones.md"
FAMILIES = [
    *("vgg_tiny", "vgg16", "resnet18", "resnet50", "resnet101", "convnext_tiny", "swin_t"),
    *("vit_b_16", "timm:vit_small_patch14_dinov2", "timm:vit_small_patch16_dinov3"),
    *("timm:vit_base_patch16_clip_224", "timm:convnext_atto", "timm:efficientnet_b0"),
]


def measure(name: str, size: int, photos: int) -> list[dict[str, Any]]:
    """A row for each stride of a backbone, in this process."""
    before = peak_memory() or 0
    torch.manual_seed(0)
    backbone = build_backbone(name, None, None).eval()
    parameters = sum(p.numel() for p in backbone.parameters())
    rows = []
    for stride in sorted(backbone.strides, reverse=True):
        backbone.set_output_stride(stride)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        image = torch.rand(1, 3, size, size).contiguous(memory_format=torch.channels_last)
        seconds = []
        with torch.inference_mode():
            for _ in range(photos + 1):
                start = time.process_time(), time.perf_counter()
                maps = backbone.last_two(image)
                ends = time.process_time() - start[0], time.perf_counter() - start[1]
                # On cores that others use too, the clock says more of them than of this.
                seconds.append(min(ends) if torch.get_num_threads() == 1 else ends[1])
        before_last, last = maps
        rows.append(
            {
                "backbone": name,
                "parameters": parameters,
                "stride": stride,
                "map": [*last.shape[2:]],
                "channels": [before_last.size(1), last.size(1)],
                "seconds": statistics.median(seconds[1:]),  # the first one warms up
                "memory": (peak_memory() or 0) - before,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    heads = "backbone | parameters | stride | map | channels | memory | photos a second"
    lines = [f"| {heads} |", "|" + "---|" * 7]
    for row in rows:
        height, width = row["map"]
        cells = [
            f"`{row['backbone']}`",
            f"{row['parameters'] / 1e6:.1f} million",
            str(row["stride"]),
            f"{height} x {width}",
            " + ".join(map(str, row["channels"])),
            f"{row['memory'] / 1e6:,.0f} MB",
            f"{1 / row['seconds']:.2g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--backbones", nargs="+", default=FAMILIES)
    options.add_argument("--size", type=int, default=256, help="side of the photos in pixels")
    options.add_argument("--photos", type=int, default=5, help="whose median time is taken")
    options.add_argument("--page", type=Path, default=PAGE, help="where --readme puts the table")
    options.add_argument("--here", action="store_true", help="measure in this process (internal)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    if args.here:
        (name,) = args.backbones
        print(json.dumps(measure(name, args.size, args.photos)))
        return
    about = machine("cpu") | {"threads": args.threads}
    rows, file = [], args.out / "backbones.json"
    same = {"cpu": about["cpu"], "torch": about["torch"], "threads": args.threads}
    found = json.loads(file.read_text()) if file.is_file() else {"size": None}
    if found["size"] == args.size and same.items() <= found["machine"].items():
        rows = [row for row in found["rows"] if row["backbone"] not in args.backbones]
    for name in args.backbones:
        command = [sys.executable, __file__, "--here", f"--backbones={name}"]
        command += [f"--{key}={getattr(args, key)}" for key in ("size", "photos", "threads")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        print(f"{name} done", flush=True)
    names = list(dict.fromkeys([*FAMILIES, *(row["backbone"] for row in rows)]))
    rows.sort(key=lambda row: names.index(row["backbone"]))
    said = (
        f"{args.threads} thread(s) of {about['cpu']}, torch {about['torch']}, float32, photos of "
        f"{args.size} x {args.size}, load {about['load']:.1f}"
    )
    write_json(file, {"machine": about, "size": args.size, "rows": rows})
    print(f"{table(rows)}\n\n({said})")
    if args.readme:
        replace_marked(args.page, "backbones", f"{table(rows)}\n\n({said})")


if __name__ == "__main__":
    main()
