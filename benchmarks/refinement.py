"""What does refinement add to the labels, and what does it cost?

    python benchmarks/refinement.py --root VOCdevkit/VOC2012 --checkpoint runs/voc/pgnn/model \
        --out runs/refinement

The maps of a trained model are inferred once and kept in OUT/maps.pt; each kind of label images is
made from them as "pgnn-geo label" does it, decoding and files included, and measured against the
true masks. The time of the maps themselves is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _common import machine
from torch import Tensor

from pgnn_geo.app.config import LabelConfig, label_defaults
from pgnn_geo.app.evaluation import evaluate
from pgnn_geo.app.pipeline import label_images
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.masks import save_mask
from pgnn_geo.io.run_folder import console, progress
from pgnn_geo.labels.maps import attention_maps
from pgnn_geo.labels.refine import REFINEMENTS

COLUMNS = ("refine", "background", "mIoU", "gain", "P", "R", "photos/s")


def parser() -> argparse.ArgumentParser:
    """Return the arguments."""
    summary = (__doc__ or "").splitlines()[0]
    out = argparse.ArgumentParser(
        description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    out.add_argument("--root", required=True, help="the VOC2012 folder")
    out.add_argument("--split", default="train", help="split that is labelled and measured")
    out.add_argument("--classes", help="comma-separated names, as the model was trained")
    out.add_argument("--tags", default="auto", help="source of the tags, see VOC2012")
    out.add_argument("--checkpoint", type=Path, help="the model that infers the maps")
    out.add_argument("--maps", type=Path, help="maps.pt of an earlier call instead")
    out.add_argument("--out", type=Path, required=True, help="folder of the results")
    names = list(REFINEMENTS)
    out.add_argument("--refine", nargs="+", choices=names, default=names, help="what to compare")
    config = LabelConfig()
    out.add_argument("--background", type=float, help="score; by default that of such a model")
    out.add_argument("--iterations", type=int, default=config.refine_iterations, help="of either")
    out.add_argument(
        "--dilations", type=int, nargs="+", default=config.refine_dilations, help="of par"
    )
    out.add_argument("--scale", type=float, default=config.refine_scale, help="of par")
    out.add_argument("--limit", type=int, help="so many photos, evenly spread")
    out.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    return out


def open_photos(args: argparse.Namespace) -> tuple[TaggedDataset, TaggedDataset]:
    """Return the photos with tags, and the same with masks."""
    data = DataConfig("voc", args.root, args.split, args.classes, args.tags)
    tagged, truth = data.build(), data.build(with_masks=True)
    if args.limit is None or args.limit >= len(tagged):
        return tagged, truth
    kept = torch.linspace(0, len(tagged) - 1, args.limit).round().long().tolist()
    return tagged.subset(kept), truth.subset(kept)


def read_maps(args: argparse.Namespace, photos: TaggedDataset) -> tuple[list[Tensor], float]:
    """Return the maps of all photos, and the background score that suits them.

    Raises:
        InputError: If stored maps are of other photos.
    """
    path: Path = args.maps or args.out / "maps.pt"
    if args.maps is None:
        model, _, _, labelling = load_attention_model(args.checkpoint)
        maps, labels = label_defaults(model, labelling)
        stored: dict[str, Any] = {
            "image_ids": photos.image_ids,
            "background": labels.background,
            "maps": attention_maps(model, photos, maps, scratch_folder=args.out, progress=progress),
        }
        with atomic_write(path) as handle:
            torch.save(stored, handle)
    else:
        stored = torch.load(path, weights_only=True)
    if stored["image_ids"] != photos.image_ids:
        raise InputError(f"{path} holds the maps of other photos")
    return stored["maps"], stored["background"]


def measure(
    photos: TaggedDataset,
    truth: TaggedDataset,
    maps: list[Tensor],
    config: LabelConfig,
    folder: Path,
) -> dict[str, Any]:
    """Write the label images of one configuration and measure them."""
    start = time.perf_counter()
    masks = label_images(photos, maps, config)
    for image_id, mask in zip(photos.image_ids, masks, strict=True):
        save_mask(folder / f"{image_id}.png", mask)
    seconds = time.perf_counter() - start
    scores = evaluate(folder, truth).to_dict()
    return {
        "config": asdict(config),
        "photos_per_second": len(photos) / seconds,
        **{name: scores[name] for name in ("miou", "precision", "recall", "per_class")},
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results in Markdown, in per cent."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for result in results:
        config, gain = result["config"], result["miou"] - results[0]["miou"]
        cells = [config["refine"], f"{config['background']:g}", f"{100 * result['miou']:.1f}"]
        cells += [f"{100 * gain:+.1f}"]
        cells += [f"{100 * result[name]:.1f}" for name in ("precision", "recall")]
        lines.append("| " + " | ".join([*cells, f"{result['photos_per_second']:.1f}"]) + " |")
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> None:
    """Compare what is asked for, and write the table and the figures."""
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    photos, truth = open_photos(args)
    maps, background = read_maps(args, photos)
    base = LabelConfig(
        background=background if args.background is None else args.background,
        refine_iterations=args.iterations,
        refine_dilations=tuple(args.dilations),
        refine_scale=args.scale,
    )
    results = []
    for name in args.refine:
        folder = args.out / f"labels-{name}"
        results.append(measure(photos, truth, maps, replace(base, refine=name), folder))
    report = {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "images": len(photos),
        "machine": machine("cpu"),
        "results": results,
    }
    for name, text in (("json", json.dumps(report, indent=1)), ("md", table(results))):
        with atomic_write(args.out / f"refinement.{name}") as handle:
            handle.write(text.encode())
    console.print(f"{args.split}, {len(photos)} photos\n\n{table(results)}", highlight=False)


def main() -> None:
    """Do what the command line says."""
    options = parser()
    args = options.parse_args()
    if (args.checkpoint is None) == (args.maps is None):
        options.error("want either --checkpoint or --maps")
    try:
        run(args)
    except InputError as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
