r"""How good are boxes that tags alone gave: those of attention maps, those of a detector?

    python benchmarks/boxes.py --root VOCdevkit/VOC2012 --checkpoint runs/voc/cam/model \
        --boxes runs/detect/boxes.json --out runs/boxes

CorLoc and average precision at an overlap of 0.5 against the boxes around the components of the
true masks, which are read for that alone. The maps of a checkpoint are those that its labels are
made from; those of a CAM are also completed by propagation, as `pgnn-geo run --patches boxes` does.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pgnn_geo.app.config import label_defaults
from pgnn_geo.boxes import AttentionBoxConfig, AttentionBoxes, BoxFile, BoxSource
from pgnn_geo.boxes.attention_boxes import ScoreName
from pgnn_geo.boxes.evaluation import evaluate_boxes, true_boxes
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.io.files import atomic_write, write_json
from pgnn_geo.io.run_folder import progress
from pgnn_geo.labels.maps import MapConfig, attention_maps
from pgnn_geo.nn import PGNN
from pgnn_geo.precision import default_device
from pgnn_geo.training.attention import COMPLETION


def parser() -> argparse.ArgumentParser:
    """Return the arguments."""
    out = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    out.add_argument("--root", required=True, help="the VOC2012 folder")
    out.add_argument("--out", type=Path, required=True, help="folder of boxes.md and boxes.json")
    out.add_argument("--split", default="train", help="photos to measure on")
    out.add_argument("--classes", help="comma-separated names that restrict the task")
    out.add_argument("--tags", default="auto", help="source of the tags, see VOC2012")
    out.add_argument("--checkpoint", type=Path, nargs="*", default=[], help="models of stage 1")
    out.add_argument("--boxes", type=Path, nargs="*", default=[], help="COCO results")
    return out


def map_configs(model: PGNN) -> dict[str, MapConfig]:
    """Return how the maps of a model are inferred, by what is added to the name of the row."""
    maps, _ = label_defaults(model, {})
    found = {"": maps}
    if maps.propagate == "none":
        found[", completed"] = replace(COMPLETION, size=maps.size)
    return found


def sources(args: argparse.Namespace, photos: TaggedDataset) -> Iterator[tuple[str, BoxSource]]:
    """Yield what is measured, one row each."""
    for checkpoint in args.checkpoint:
        model, _, ledger, _ = load_attention_model(checkpoint)
        model.to(default_device())
        for done, config in map_configs(model).items():
            maps = attention_maps(model, photos, config, args.out / "stems", args.out, progress)
            for score in get_args(ScoreName):
                cut = AttentionBoxConfig(score=score)
                name = f"maps of {checkpoint}{done}, score {score}"
                yield name, AttentionBoxes(maps, photos, ledger, cut)
    for path in args.boxes:
        yield f"boxes of {path}", BoxFile(path, photos, skip_unknown=True)


def markdown(rows: list[dict[str, Any]], classes: tuple[str, ...]) -> str:
    """Return the table, in per cent."""
    heads = ["boxes", "CorLoc", "mAP", *(f"CorLoc {name}" for name in classes)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        each = [row["per_class"][name]["corloc"] for name in classes]
        values = [row["corloc"], row["map"], *each]
        shown = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        lines.append("| " + " | ".join([row["boxes"], *shown]) + " |")
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> None:
    """Measure all sources, and write the table and the figures."""
    if not args.checkpoint and not args.boxes:
        raise InputError("nothing to measure: want --checkpoint or --boxes")
    data = DataConfig("voc", args.root, args.split, args.classes, args.tags)
    photos, truth = data.build(), data.build(with_masks=True)
    args.out.mkdir(parents=True, exist_ok=True)
    true = true_boxes(truth, progress=progress)
    rows = []
    for name, source in sources(args, photos):
        scores = evaluate_boxes(source, true, photos.classes).to_dict()
        rows.append({"boxes": name, **scores, "supervision": source.ledger.to_list()})
        print(f"{name}: CorLoc {100 * scores['corloc']:.1f}, mAP {100 * scores['map']:.1f}")
    text = markdown(rows, tuple(photos.classes))
    shutil.rmtree(args.out / "stems", ignore_errors=True)
    write_json(args.out / "boxes.json", {"photos": data.name, "images": len(photos), "rows": rows})
    with atomic_write(args.out / "boxes.md") as handle:
        handle.write(text.encode())
    print(text)


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
