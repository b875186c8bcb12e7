"""The paper's Tables 1 to 6, for several recipes, by one command.

    python benchmarks/tables.py --root VOCdevkit/VOC2012 --out runs/tables --name voc \
        --paste docs/results/tables.md

Table 1 has the labels of each recipe, each class beside its own class activation map; Tables 2 and
3 have the networks that learnt the labels, with VGG-16 and with ResNet-101, with and without the
mutual complement, measured on `val`; Tables 4 to 6 have the parts of the trained P-GNN. P, R and
mIoU of all.

How long it will take is printed first, from one pass of each backbone on this machine; `--estimate`
ends there. Everything is made by `pgnn-geo run`, `benchmarks/segmentation.py` and
`benchmarks/ablation.py` in folders of OUT that a second command finds: a run that was cut off goes
on where it stopped. OUT/tables.md and OUT/tables.json are written anew after each table, and
`--paste` puts the tables into a page between `<!-- tables NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ablation
import segmentation
from _common import machine
from _readme import replace_marked
from _tables_plan import Label, Plan, estimate, hours

from pgnn_geo.app import cli
from pgnn_geo.app.cli_parser import run_function
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write, write_json
from pgnn_geo.io.run_folder import console

MEASURES = ("miou", "precision", "recall")
HEADS = "| {} | mIoU | P | R |\n|---|---|---|---|"


def parser() -> argparse.ArgumentParser:
    """Return the arguments."""
    summary = (__doc__ or "").splitlines()[0]
    out = argparse.ArgumentParser(
        description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    out.add_argument("--root", required=True, help="the VOC2012 folder")
    out.add_argument("--out", type=Path, required=True, help="folder of the tables")
    out.add_argument("--split", default="train", help="split that is labelled and trained on")
    out.add_argument("--classes", help="comma-separated names that restrict the task")
    out.add_argument("--tables", nargs="+", type=int, choices=range(1, 7), default=[*range(1, 7)])
    out.add_argument("--recipes", nargs="+", default=["cam", "paper", "best", "many"])
    out.add_argument("--backbones", nargs="+", default=["vgg16", "resnet101"])
    out.add_argument("--seeds", nargs="+", type=int, default=[0], help="of what is trained")
    out.add_argument("--cache", type=Path, help="banks of features, in a folder per backbone")
    out.add_argument("--segment", type=Path, help="YAML file of options of segmentation.py")
    out.add_argument("--ablation", default="", help="more options of ablation.py, in one string")
    out.add_argument("--estimate", action="store_true", help="only say how long it will take")
    out.add_argument("--name", default="voc", help="what the page calls these photos")
    out.add_argument("--paste", type=Path, help="page with a place for the tables")
    return out


def bank_folder(args: argparse.Namespace, backbone: str) -> Path:
    """Return where the features of a backbone are kept, for all recipes."""
    folder: Path = args.cache or args.out / "features"
    return folder / backbone


def make_labels(args: argparse.Namespace, label: Label) -> dict[str, Any]:
    """Make the labels of a recipe, unless they are there; return what they are worth."""
    folder, cache = args.out / label.folder, bank_folder(args, label.backbone)
    words = ["run", f"--root={args.root}", f"--recipe={label.recipe}", f"--out={folder}"]
    words += [f"--split={args.split}", f"--network.backbone={label.backbone}", "--segment=off"]
    words += [f"--classes={args.classes}"] if args.classes else []
    if label.frozen:
        words += ["--baseline=true", f"--cache={cache}"]
    else:
        words += [f"--train.seed={label.seed}"]
    cli.main(words)
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    if label.frozen and found["background"]["pgnn"]["refine"] != "none":
        raw = folder / "raw.json"
        if not raw.is_file():
            source = [f"--root={args.root}", f"--split={args.split}"]
            source += [f"--classes={args.classes}"] if args.classes else []
            words = [f"--checkpoint={folder / 'pgnn' / 'model'}", "--labels.refine=none"]
            words += [f"--cache={cache}"]
            cli.main(["label", *words, f"--out={folder / 'raw'}", *source])
            cli.main(["evaluate", f"--labels={folder / 'raw'}", f"--out={raw}", *source])
        found["raw"] = json.loads(raw.read_text())
    return found


def labels_table(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Return Table 1: every recipe's labels, and each class beside its own CAM."""
    rows, classes = [], dict[str, Any]()
    for label in plan.labels:
        found = make_labels(args, label)
        refined = "" if found["background"][label.model]["refine"] == "none" else ", refined"
        kinds = {f"{label.title}{refined}": found[label.model]}
        if "raw" in found:
            kinds[f"{label.title}, not refined"] = found["raw"]
        rows += [{"title": title, **pick(scores)} for title, scores in kinds.items()]
        if label.frozen:
            own = found.get("raw", found["pgnn"])["per_class"]
            rows += [{"title": f"its CAM, {label.title}", **pick(found["cam"])}]
            classes[label.title] = {
                name: {"cam": found["cam"]["per_class"][name]["iou"], **scores}
                for name, scores in own.items()
            }
    return {"rows": rows, "classes": classes}


def networks_table(args: argparse.Namespace, plan: Plan, backbone: str) -> dict[str, Any]:
    """Return Table 2 or 3: networks of one backbone that learnt the labels, and the true masks."""
    chosen = [label for label in plan.labels if label.backbone == backbone]
    for label in chosen:
        make_labels(args, label)
    folder = args.out / f"networks-{backbone}"
    words = [f"--root={args.root}", f"--split={args.split}", f"--out={folder}"]
    words += [f"--classes={args.classes}"] if args.classes else []
    words += [f"--seeds={args.seeds}", '--mutual=["off", "literal"]']
    words += [f"--config={args.segment}"] if args.segment else []
    words += [f"--network.backbone={backbone}"]
    for label in chosen:
        words += [f"--labels.{label.name}={args.out / label.folder / label.model / 'labels'}"]
    run_function(segmentation.compare, words)
    found = json.loads((folder / "segmentation.json").read_text())["rows"]
    return {"rows": [{"title": row["title"], **pick(row)} for row in found]}


def parts_table(args: argparse.Namespace, number: int) -> dict[str, Any]:
    """Return one of Tables 4 to 6, of the first backbone."""
    folder = args.out / "parts"
    words = [f"--root={args.root}", f"--split={args.split}", f"--out={folder}"]
    words += [f"--classes={args.classes}"] if args.classes else []
    words += ["--backbone", args.backbones[0], "--seeds", *map(str, args.seeds), "--every-seed"]
    words += [*shlex.split(args.ablation), "--tables", str(number)]
    ablation.run(ablation.parser().parse_args(words))
    tables = json.loads((folder / "ablation.json").read_text())["tables"]
    rows = next(table["rows"] for table in tables if table["name"] == str(number))
    return {"rows": [{"title": row["label"], **pick(row)} for row in rows]}


def pick(scores: dict[str, Any]) -> dict[str, Any]:
    """Return mIoU, precision and recall, and how seeds differ where that is known."""
    spread = {"std": scores["std"]} if scores.get("std") else {}
    return {name: scores[name] for name in MEASURES} | spread


def made(args: argparse.Namespace, plan: Plan) -> Iterator[tuple[int, dict[str, Any]]]:
    """Make and yield the tables that are wanted, in their order."""
    for number in sorted(args.tables):
        if number == 1:
            yield number, labels_table(args, plan)
        elif number <= 3:
            if number - 2 < len(args.backbones):
                yield number, networks_table(args, plan, args.backbones[number - 2])
        else:
            yield number, parts_table(args, number)


def markdown(tables: dict[int, dict[str, Any]], plan: Plan, command: str) -> str:
    """Return the tables and the command that made them."""
    lines = ["```bash", command, "```", ""]
    for number, table in sorted(tables.items()):
        lines += [f"### Table {number}: {plan.titles[number]}", "", HEADS.format("")]
        for row in table["rows"]:
            spread = row.get("std", {})
            values = [f"{100 * row[name]:.1f}{_spread(spread.get(name))}" for name in MEASURES]
            lines.append(f"| {row['title']} | " + " | ".join(values) + " |")
        for title, classes in table.get("classes", {}).items():
            lines += ["", f"IoU of each class and of its own CAM, {title}, not refined:", ""]
            lines += ["| | " + " | ".join(classes) + " |", "|---|" + "---|" * len(classes)]
            for name, key in (("CAM", "cam"), ("labels", "iou")):
                cells = [_cell(scores[key]) for scores in classes.values()]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _spread(value: float | None) -> str:
    return "" if value is None else f" ± {100 * value:.1f}"


def run(args: argparse.Namespace) -> None:
    """Say how long it will take; make the tables; write and paste them after each."""
    data = DataConfig("voc", args.root, args.split, args.classes)
    plan = Plan(args.recipes, args.backbones, args.seeds)
    expected = estimate(plan, args, len(data.build()))
    for title, seconds in expected.items():
        console.print(f"{title}: about {hours(seconds)}", highlight=False)
    total = hours(sum(expected.values()))
    console.print(f"all: about {total} on this machine", highlight=False)
    if args.estimate:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if args.paste is not None:
        replace_marked(args.paste, f"tables {args.name}", None)  # which raises now, not after hours
    command = f"python benchmarks/tables.py {shlex.join(sys.argv[1:])}"
    tables: dict[int, dict[str, Any]] = {}
    for number, table in made(args, plan):
        tables[number] = table
        text = markdown(tables, plan, command)
        content = {"command": command, "machine": machine("cpu"), "expected": expected}
        write_json(args.out / "tables.json", {**content, "tables": tables})
        with atomic_write(args.out / "tables.md") as handle:
            handle.write(text.encode())
        if args.paste is not None:
            replace_marked(args.paste, f"tables {args.name}", text)
    shutil.rmtree(args.out / "features", ignore_errors=True)  # gigabytes that all recipes need
    console.print(f"tables {args.out}/tables.md, figures {args.out}/tables.json")


def main() -> None:
    """Do what the command line says."""
    options = parser()
    args = options.parse_args()
    try:
        run(args)
    except InputError as error:
        options.error(str(error))


if __name__ == "__main__":
    main()
