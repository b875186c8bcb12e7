"""How good are labels from frozen features, step by step, and what do they cost?

    python benchmarks/stage1.py --root VOCdevkit/VOC2012 --classes cat,cow,dog,horse,person,sheep \
        --out runs/stage1 --backgrounds 0.4 0.5 0.6

Learns evidence from the tags of the photos of a split, as a recipe says, and scores the label
images of each step on the same photos, as they are and refined. The scores at the recipe's own
background are the result; `--backgrounds` tries others, to choose on photos that are not reported:
`--tune extra` takes those of train_aug that the split has not, `--with-split` lets the tags of the
split's photos join the fit, where the others are too few. Each `--set` makes a model of its own,
rows of a table of choices:

    python benchmarks/stage1.py --root VOCdevkit/VOC2012 --classes cat,cow,dog,horse,person,sheep \
        --out runs/choice --tune extra --every 2 --steps classifier --refine none \
        --backgrounds 0.55 0.6 --set classifier_rounds=1 --set foreground=0.65 background=0.35

With `--errors` there is a table of the classes for each row: the IoU of the class and of its class
activation map, at the score of `pgnn-geo run --baseline true`, and what it would gain if all errors
of one kind were mended.

Features are kept in OUT: the second command takes a minute. OUT/stage1.md and .json hold the
tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from _common import machine

from pgnn_geo.app.config import CAM_LABELS, NETWORK, LabelConfig
from pgnn_geo.app.labelling import label_images
from pgnn_geo.app.recipes import recipe_file
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.features import FrozenFeatureConfig, frozen_features
from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.run_folder import progress
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.labels.frozen import EvidenceModel, fit_evidence
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.metrics import ConfusionMatrix, ErrorBreakdown
from pgnn_geo.nn.backbones import build_backbone

MEASURES = ("miou", "precision", "recall")
STEPS = ("evidence", "prototypes", "classifier")


def photos_of(args: argparse.Namespace) -> tuple[TaggedDataset, TaggedDataset]:
    """The photos to measure on, with true masks, and those whose tags are learned from."""
    config = DataConfig("voc", args.root, args.split, args.classes)
    photos = config.build(with_masks=True)
    if args.tune is None:
        measured = photos.subset(range(0, len(photos), args.every))
        return measured, measured
    larger = replace(config, split="train_aug").build(with_masks=True)
    own = set(photos.image_ids)
    others = [i for i, name in enumerate(larger.image_ids) if name not in own][:: args.every]
    kept = [i for i, name in enumerate(larger.image_ids) if name in own] if args.with_split else []
    return larger.subset(others), larger.subset(sorted(kept + others))


class Clock:
    """Seconds of named steps, wall clock and processor."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        start = time.perf_counter(), time.process_time()
        yield
        ends = time.perf_counter() - start[0], time.process_time() - start[1]
        self.seconds[name] = ends
        print(f"{name}: {ends[0]:.1f} s, {ends[1]:.1f} s of processor", flush=True)


def scores(
    photos: TaggedDataset,
    maps: TaggedMaps,
    labels: LabelConfig,
    errors: ErrorBreakdown | None = None,
) -> dict[str, Any]:
    """What the label images of maps are worth; counts their errors by kind as well."""
    assert photos.tags is not None
    matrix = ConfusionMatrix(len(photos.classes), photos.classes)
    attention = list(maps.maps.split(photos.tags.bool().sum(dim=1).tolist()))
    for index, mask in enumerate(label_images(photos, attention, labels)):
        truth = photos.read_mask(index)
        matrix.update(mask, truth, photos.image_ids[index])
        if errors is not None:
            errors.update(mask, truth, photos.image_ids[index])
    return matrix.compute().to_dict()


def by_class(
    found: dict[str, Any], cam: dict[str, Any], errors: ErrorBreakdown
) -> list[dict[str, Any]]:
    """Rows of the classes, in points: IoU beside the CAM's, precision, recall, gains by kind."""
    shares = errors.compute()
    kinds = shares.to_dict()["per_class"]
    rows: list[dict[str, Any]] = []
    for name, row in found["per_class"].items():
        own = {"CAM": cam["per_class"][name]["iou"], "IoU": row["iou"]}
        own |= {"P": row["precision"], "R": row["recall"], **kinds[name]}
        rows.append({"class": name, **{k: 100 * v for k, v in own.items() if v is not None}})
    means = {"CAM": cam["miou"], "IoU": found["miou"], "P": found["precision"]}
    means |= {"R": found["recall"], **{kind: shares.mean(kind) for kind in shares.gains}}
    return [*rows, {"class": "mean", **{name: 100 * value for name, value in means.items()}}]


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of all columns that any row has."""
    heads = list(dict.fromkeys(name for row in rows for name in row if name != "classes"))
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row.get(name, "") for name in heads]
        texts = (f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def values(words: list[str]) -> dict[str, Any]:
    """Settings from words NAME=VALUE."""
    parts = (word.partition("=") for word in words)
    return {name: yaml.safe_load(value) for name, _, value in parts}


def main() -> None:
    """Learn, measure, write the tables."""
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--root", required=True)
    cli.add_argument("--split", default="train")
    cli.add_argument("--classes")
    cli.add_argument("--tune", choices=["extra"], help="the photos of train_aug beside the split")
    cli.add_argument("--recipe", default="best", help="name or YAML file, of the frozen flow")
    cli.add_argument("--with-split", action="store_true", help="its photos' tags as well")
    cli.add_argument("--every", type=int, default=1, help="every N-th photo is measured")
    cli.add_argument(
        "--set", nargs="*", action="append", metavar="NAME=VALUE", help="of its evidence, a model"
    )
    cli.add_argument("--steps", nargs="*", choices=STEPS, default=[*STEPS])
    cli.add_argument("--refine", nargs="*", default=["none", "par"])
    cli.add_argument("--backgrounds", nargs="*", type=float, default=[])
    cli.add_argument("--errors", action="store_true", help="a table of the classes")
    cli.add_argument("--backbone", default="vgg16")
    cli.add_argument("--out", type=Path, required=True)
    args = cli.parse_args()
    recipe = yaml.safe_load(recipe_file([f"--recipe={args.recipe}"]).read_text())
    features = FrozenFeatureConfig(**recipe.get("features", {}))
    models = {
        " ".join(words): EvidenceConfig(**{**recipe.get("evidence", {}), **values(words)})
        for words in args.set or [[]]
    }
    labels = LabelConfig(**recipe.get("labels", {}))

    (photos, learned), clock = photos_of(args), Clock()
    assert photos.tags is not None and learned.tags is not None
    with clock.step("features"):
        backbone = build_backbone(args.backbone, NETWORK.defaults["weights"])
        folder = args.out / f"{args.split}{'' if args.tune is None else '-' + args.tune}"
        bank = frozen_features(backbone, photos, folder, features, progress)
        more = bank
        if args.with_split:
            folder = args.out / "learned"
            more = frozen_features(backbone, learned, folder, features, progress)
    rows: list[dict[str, Any]] = []
    classes: dict[str, list[dict[str, Any]]] = {}
    for name, evidence in models.items():
        with clock.step(f"fit {name}".strip()):
            model: EvidenceModel = fit_evidence(more, learned.tags, evidence)
        cam: dict[str, Any] = {}
        if args.errors:
            cam = scores(photos, model.maps(bank, photos.tags, "evidence"), CAM_LABELS)
        for step in args.steps:
            with clock.step(f"maps of the {step} {name}".strip()):
                maps = model.maps(bank, photos.tags, step)
            for refine, background in itertools.product(
                args.refine, dict.fromkeys([labels.background, *args.backgrounds])
            ):
                chosen = replace(labels, background=background, refine=refine)
                errors = (
                    ErrorBreakdown(len(photos.classes), photos.classes) if args.errors else None
                )
                title = f"{step}, {refine}, {background} {name}".strip()
                with clock.step(title):
                    found = scores(photos, maps, chosen, errors)
                row = {"step": step, "refine": refine, "background": f"{background}"}
                row |= {measure: 100 * found[measure] for measure in MEASURES}
                rows.append({"set": name, **row} if args.set else row)
                print("  ".join(f"{k}={v}" for k, v in rows[-1].items()), flush=True)
                if errors is not None:
                    classes[title] = rows[-1]["classes"] = by_class(found, cam, errors)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    costs = [
        {"part": name, "seconds": wall, "of processor": cpu}
        for name, (wall, cpu) in clock.seconds.items()
    ]
    facts = {
        "photos": len(photos),
        "photos whose tags are learned from": len(learned),
        "features": asdict(features),
        "evidence": {name: asdict(evidence) for name, evidence in models.items()},
        "features on disk, MB": bank.path.stat().st_size / 1e6,
        "peak memory, MB": usage.ru_maxrss / 1e3,
        "machine": machine("cpu"),
    }
    said = "\n".join(f"{name}: {value}" for name, value in facts.items())
    tables = [table(rows), *(f"{title}:\n\n{table(each)}" for title, each in classes.items())]
    with atomic_write(args.out / "stage1.md") as handle:
        handle.write("\n".join([*tables, table(costs), f"{said}\n"]).encode())
    with atomic_write(args.out / "stage1.json") as handle:
        handle.write(json.dumps({"rows": rows, "costs": costs, **facts}, indent=1).encode())
    print(table(rows))


if __name__ == "__main__":
    main()
