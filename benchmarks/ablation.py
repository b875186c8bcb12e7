"""What does each part of the method add? The paper's tables and ours, by one command.

    python benchmarks/ablation.py --root VOCdevkit/VOC2012 --out runs/ablation --seeds 0 1 2

Every variant is trained once per seed, and its maps are measured against the masks in several
ways. Each result is a file of its own in OUT/cells: a run that was cut off goes on where it
stopped, a training in the middle of its epochs too. OUT/ablation.md and OUT/ablation.json are
written anew after every cell. With --tune extra the same is done on the photos of train_aug that
the split does not have; --backgrounds takes the background scores that were best there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from _ablation_cells import Photos, is_done, measure_cell, remove_stems
from _ablation_plan import FILE_VARIANT, TABLES, Plan, Planned
from _ablation_report import write_report
from _common import machine

from pgnn_geo.app.config import RunConfig
from pgnn_geo.boxes.patches import read_boxes
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import write_json
from pgnn_geo.io.run_folder import claim_folder, console
from pgnn_geo.precision import default_device
from pgnn_geo.training.preflight import find_problems, raise_problems


def parser() -> argparse.ArgumentParser:
    """Return the arguments."""
    summary = (__doc__ or "").splitlines()[0]
    out = argparse.ArgumentParser(
        description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    out.add_argument("--root", help="the VOC2012 folder")
    out.add_argument("--out", type=Path, required=True, help="folder of the ablation")
    out.add_argument("--split", default="train", help="split to train on and to measure on")
    out.add_argument("--classes", help="comma-separated names that restrict the task")
    out.add_argument("--tags", default="auto", help="source of the tags, see VOC2012")
    out.add_argument(
        "--tune",
        choices=["none", "extra"],
        default="none",
        help="extra: the photos of train_aug that the split does not have",
    )
    names = [table.name for table in TABLES]
    out.add_argument("--tables", nargs="+", choices=names, default=names, help="what to run")
    out.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of headline rows")
    out.add_argument("--every-seed", action="store_true", help="of the other rows as well")
    out.add_argument(
        "--backgrounds", type=Path, help="ablation.json of a --tune run: its best scores are taken"
    )
    out.add_argument("--boxes", help="COCO results: boxes for a row of the table 'patches'")
    out.add_argument("--report", action="store_true", help="only write the tables of OUT anew")
    changes = out.add_argument_group("changes of the default run")
    changes.add_argument("--backbone", help="trunk")
    changes.add_argument("--weights", help="pretrained weights; 'none': random, nothing frozen")
    changes.add_argument("--size", type=int, help="side of the photos in pixels")
    changes.add_argument("--epochs", type=int, help="epochs on tags")
    changes.add_argument("--completion-epochs", type=int, help="epochs after those")
    changes.add_argument("--lr", type=float, help="peak learning rate of the backbone")
    changes.add_argument("--workers", type=int, help="loader processes")
    return out


def base_config(args: argparse.Namespace, split: str) -> RunConfig:
    """Return the run that the variants change: the default with the changes asked for."""
    data = DataConfig("voc", str(args.root), split, args.classes, args.tags)
    config = RunConfig(data, "trained", segment=None)
    network = dict(config.network)
    if args.backbone:
        network["backbone"] = args.backbone
    if args.weights == "none":
        network |= {"weights": None, "freeze_stages": 0}
    elif args.weights:
        network["weights"] = args.weights
    train, maps = config.train, config.maps
    if args.size:
        completion = replace(train.completion, size=args.size)
        train = replace(train, size=args.size, completion=completion)
        maps = replace(maps, size=args.size)
    for name in ("epochs", "completion_epochs", "lr", "workers"):
        if (value := getattr(args, name)) is not None:
            train = replace(train, **{name: value})
    return replace(config, network=network, train=train, maps=maps)


def cells(plan: Plan, args: argparse.Namespace) -> Iterator[tuple[Planned, int]]:
    """Yield what to run, each cell once: all tables at the first seed, then the other seeds."""
    seen = set()
    for seed in args.seeds:
        for table in TABLES:
            wanted = table.headline or args.every_seed or seed == args.seeds[0]
            if table.name not in args.tables or not wanted:
                continue
            for planned in map(plan.of, table.rows):
                if planned.variant == FILE_VARIANT and args.boxes is None:
                    continue
                key = planned.variant, planned.maps, seed
                if key not in seen:
                    seen.add(key)
                    yield planned, seed


def run(args: argparse.Namespace) -> None:
    """Run what is not there yet, and write the tables."""
    photos = Photos(DataConfig("voc", args.root, args.split, args.classes, args.tags), args.tune)
    base = base_config(args, photos.split)
    args.out.mkdir(parents=True, exist_ok=True)
    claim_folder(args.out, base)
    problems = [*photos.truth.check(), *find_problems(None, base.source)]
    if args.boxes is not None and not problems:
        read_boxes(Path(args.boxes), photos.tagged)
    raise_problems(problems)
    plan, device = Plan(base, args.boxes), default_device()
    previous = args.out / "settings.json"
    asked = json.loads(previous.read_text())["tables"] if previous.is_file() else []
    settings: dict[str, Any] = {
        "command": f"python benchmarks/ablation.py {shlex.join(sys.argv[1:])}",
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "data": {
            "split": photos.split,
            "images": len(photos.tagged),
            "classes": list(photos.tagged.classes),
            "tag_source": getattr(photos.tagged, "tag_source", "given"),
        },
        "machine": machine(device),
        "tables": list(dict.fromkeys([*asked, *args.tables])),
    }
    write_json(previous, settings)
    todo = list(cells(plan, args))
    done = [is_done(planned, seed, args.out) for planned, seed in todo]
    write_report(args.out, plan, settings, args.backgrounds)
    for number, (planned, seed) in enumerate(todo, 1):
        title = f"{number}/{len(todo)} {planned.variant}, seed {seed}, maps {planned.maps}"
        if done[number - 1]:
            console.print(f"{title}: there already", highlight=False)
            continue
        result = measure_cell(planned, seed, photos, args.out, device)
        fixed, seconds = result["fixed"], result["seconds"]["maps"]
        console.print(
            f"{title}: mIoU {100 * fixed['miou']:.1f} at {fixed['background']:g}, {seconds:.0f} s",
            highlight=False,
        )
        write_report(args.out, plan, settings, args.backgrounds)
    remove_stems(args.out)
    console.print(f"tables {args.out}/ablation.md, figures {args.out}/ablation.json")


def report(out: Path, backgrounds: Path | None) -> None:
    """Write the tables of what is in a folder."""
    try:
        settings = json.loads((out / "settings.json").read_text())
    except FileNotFoundError as error:
        raise InputError(f"{out} holds no ablation; run one first: {error}") from error
    args = argparse.Namespace(**settings["arguments"])
    plan = Plan(base_config(args, settings["data"]["split"]))
    write_report(out, plan, settings, backgrounds)
    console.print(f"tables {out}/ablation.md, figures {out}/ablation.json")


def main() -> None:
    """Do what the command line says."""
    options = parser()
    args = options.parse_args()
    try:
        if args.report:
            report(args.out, args.backgrounds)
        elif args.root is None:
            options.error("--root is needed: the VOC2012 folder")
        else:
            run(args)
    except InputError as error:
        options.error(str(error))


if __name__ == "__main__":
    main()
