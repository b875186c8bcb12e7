"""How long do tags of other tools take to read, and exports to write, for thousands of photos?

    python benchmarks/formats.py --photos 10000 --out runs/formats

Tiny drawn photos in folders, a file of tags in each format, and label images of 500 x 375 with
five parts and a hole (a few of them, linked to under every id). An import is `TaggedFolder` on the
photos, listing included: nothing of a photo is decoded but where two have the same name, in a
folder for each class; that of a Hugging Face data set is `unpack`, which writes the photos. An
export is `write_exports`; `decoding` is the reading of all label images alone, which every export
does once, and is taken off. OUT/formats.md holds the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from pgnn_geo.datasets import TaggedFolder
from pgnn_geo.datasets.formats import FOLDERS, FORMATS
from pgnn_geo.datasets.hugging_face import unpack
from pgnn_geo.errors import InputNote
from pgnn_geo.io.exports import EXPORTS, check_exports, write_exports
from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.masks import load_mask, save_mask

CLASSES = ("cat", "dog", "traffic light", "person", "sheep")
HUGGING_FACE = "hugging_face"
Rows = dict[str, list[int]]  # numbers of the classes of each photo


def draw(root: Path, number: int) -> Rows:
    """Photos of 16 x 12 pixels, a hundred in a folder, and the classes of each."""
    random, rows = np.random.default_rng(0), Rows()
    for k in range(number):
        name = f"{k // 100:03d}/{k:05d}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
        rows[name] = sorted({k % 5, int(random.integers(5))})
    return rows


def tag_files(folder: Path, rows: Rows) -> dict[str, Path]:
    """A file of each format, by the format's name."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [(k, c) for k, own in enumerate(rows.values()) for c in own]
    ids = {name: k for k, name in enumerate(rows)}
    named = {name: [CLASSES[c] for c in own] for name, own in rows.items()}
    texts = {
        "coco.json": json.dumps(
            {
                "images": [{"id": k, "file_name": name} for name, k in ids.items()],
                "annotations": [
                    {"id": j, "image_id": k, "category_id": c} for j, (k, c) in enumerate(pairs)
                ],
                "categories": [{"id": c, "name": name} for c, name in enumerate(CLASSES)],
            }
        ),
        "datumaro.json": json.dumps(
            {
                "categories": {"label": {"labels": [{"name": name} for name in CLASSES]}},
                "items": [
                    {
                        "id": name.removesuffix(".png"),
                        "image": {"path": name},
                        "annotations": [{"label_id": c} for c in own],
                    }
                    for name, own in rows.items()
                ],
            }
        ),
        "label_studio.json": json.dumps(
            [
                {
                    "data": {"image": f"s3://bucket/some/where/{name}"},
                    "annotations": [{"result": [{"value": {"choices": own}}]}],
                }
                for name, own in named.items()
            ]
        ),
        "label_studio_min.json": json.dumps(
            [
                {"image": f"s3://bucket/{name}", "what": {"choices": own}, "annotation_id": k}
                for k, (name, own) in enumerate(named.items())
            ]
        ),
        "cvat.xml": "<annotations>{}</annotations>".format(
            "".join(
                f"<image name={quoteattr(name)}>"
                + "".join(f"<tag label={quoteattr(c)}/>" for c in own)
                + "</image>"
                for name, own in named.items()
            )
        ),
        "imagenet.txt": "".join(
            f"{name} {' '.join(map(str, own))}\n" for name, own in rows.items()
        ),
        "synsets.txt": "\n".join(CLASSES),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    tables = {
        "csv.csv": [["image", "labels"], *([n, "|".join(own)] for n, own in named.items())],
        "columns.csv": [
            ["image", *CLASSES],
            *([n, *(int(c in own) for c in range(len(CLASSES)))] for n, own in rows.items()),
        ],
    }
    for name, table in tables.items():
        with open(folder / name, "w", newline="") as handle:
            csv.writer(handle).writerows(table)
    return {kind.name: next(folder.glob(f"{kind.name}.*")) for kind in FORMATS}


def class_folders(photos: Path, root: Path, rows: Rows) -> None:
    """The photos once more, linked from the folder of each of their classes."""
    for name, own in rows.items():
        for c in own:
            path = root / CLASSES[c] / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(photos / name, path)


def hugging_face(photos: Path, source: Path, rows: Rows) -> None:
    """The photos and tags as their library keeps them."""
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "labels": datasets.Sequence(datasets.ClassLabel(names=list(CLASSES))),
        }
    )
    images = [{"bytes": (photos / name).read_bytes(), "path": name} for name in rows]
    packed = {"image": images, "labels": list(rows.values())}
    datasets.Dataset.from_dict(packed, features=features).save_to_disk(source)


def label_images(folder: Path, rows: Rows) -> None:
    """Label images of 500 x 375 under the id of every photo."""
    y, x = np.mgrid[:375, :500]
    kinds = []
    for k in range(20):
        mask = np.zeros((375, 500), dtype=np.uint8)
        for c in range(len(CLASSES)):
            there = np.hypot(x - 60 - 90 * c, y - 100 - 12 * ((k * (c + 3)) % 17)) < 30 + 5 * c
            mask[there] = c + 1
        mask[np.hypot(x - 330, y - 100 - 12 * ((k * 6) % 17)) < 12] = 0
        kinds.append(folder / "kinds" / f"{k}.png")
        save_mask(kinds[-1], mask)
    for k, name in enumerate(rows):
        path = folder / Path(name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(kinds[k % len(kinds)], path)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """What a call takes, by the clock and of the processor."""
    wall, own = perf_counter(), os.times()
    call()
    done = os.times()
    return perf_counter() - wall, done.user + done.system - own.user - own.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=int, default=10000, help="number of photos")
    parser.add_argument("--only", nargs="*", default=[], help="names of formats; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/formats"))
    args = parser.parse_args()
    work = args.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    rows = draw(work / "photos", args.photos)
    sources = {
        name: (work / "photos", path) for name, path in tag_files(work / "tags", rows).items()
    }
    class_folders(work / "photos", work / "classes", rows)
    sources[FOLDERS] = (work / "classes", Path(FOLDERS))
    labels = work / "labels"
    label_images(labels, rows)
    ids = {name.removesuffix(".png"): work / "photos" / name for name in rows}
    lines = ["| way | format | seconds | of the processor |", "|---|---|---|---|"]

    def wanted(name: str) -> bool:
        return not args.only or name in args.only

    def add(way: str, name: str, taken: tuple[float, float]) -> None:
        lines.append(f"| {way} | {name} | {taken[0]:.1f} | {taken[1]:.1f} |")
        print(lines[-1], flush=True)

    warnings.simplefilter("ignore", InputNote)
    for name, (root, tags) in sources.items():
        if wanted(name):
            add("in", name, seconds(lambda root=root, tags=tags: TaggedFolder(root, tags)))
    if wanted(HUGGING_FACE):
        source, out = work / "packed", work / "unpacked"
        hugging_face(work / "photos", source, rows)
        add("in", HUGGING_FACE, seconds(lambda: unpack(source, out)))
    decoding = seconds(lambda: [load_mask(labels / f"{image_id}.png") for image_id in ids])
    add("", "decoding of label images", decoding)
    for name in EXPORTS:
        if wanted(name):
            exports, place = check_exports(name), (args.out / "exports", [*ids.items()], labels)
            taken = seconds(lambda e=exports, p=place: write_exports(e, *p, CLASSES))
            add("out", name, (taken[0] - decoding[0], taken[1] - decoding[1]))
            shutil.rmtree(args.out / "exports")
    shutil.rmtree(work)
    with atomic_write(args.out / "formats.md") as handle:
        handle.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
