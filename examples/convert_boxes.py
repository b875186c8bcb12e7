"""Boxes of another detector (OICR, LBBA and others of Fast R-CNN's line) as COCO results JSON.

    python examples/convert_boxes.py detections.pkl --images trainval.txt --out boxes.json \
        --tags "VOC 2012 trainval" --boxes "LBBA adjusters: COCO 60"

Reads what these codes leave behind:

- `.pkl`, a list `[class][image]` of arrays [n, 5] of x1, y1, x2, y2, score, or a dictionary that
  holds one as `all_boxes`; with or without a first class for the background;
- `.pkl`, a dictionary of photos, each `{"boxes": [n, 4], "scores": [n, K]}` (OICR's discovery);
- `.mat`, a cell array {class, image} of the same arrays [n, 5], counted from 1 (needs scipy).

Lists are in the order of --images, a file with an image id in each line.

A WORD OF WARNING: a pickle is a program. Loading one runs whatever its author put into it, which is
why the library itself never does. This script refuses anything but numpy arrays and plain values
when it loads one, which keeps out what is known to be dangerous, but convert only files of people
whom you would let run code on your machine. --unrestricted loads anything.
"""

import argparse
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgnn_geo.boxes import ImageBoxes, write_boxes
from pgnn_geo.datasets import VOC_CLASSES
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger

ALLOWED = {
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # bytes in pickles of Python 2
}


class ArrayUnpickler(pickle.Unpickler):
    """Loads numpy arrays and plain values, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise InputError(
                f"the pickle wants to call {module}.{name}; if you trust it: --unrestricted"
            )
        return super().find_class(module, name)


def load(path: Path, unrestricted: bool, variable: str) -> Any:
    """The content of a .pkl or .mat file."""
    if path.suffix == ".mat":
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise InputError(".mat files need scipy: pip install scipy") from error
        content = loadmat(path)
        if variable not in content:
            names = [name for name in content if not name.startswith("__")]
            raise InputError(f"'{path}' has no variable {variable!r} but {names}; see --variable")
        return content[variable]
    with open(path, "rb") as handle:
        reader = pickle.Unpickler if unrestricted else ArrayUnpickler
        content = reader(handle, encoding="latin1").load()
    return content.get("all_boxes", content) if isinstance(content, dict) else content


def rows_of(content: Any, images: list[str], classes: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """Image id, class 1..K and rows x1, y1, x2, y2, score."""
    if isinstance(content, dict):
        for key, photo in content.items():
            boxes, scores = np.asarray(photo["boxes"]), np.asarray(photo["scores"])
            shift = scores.shape[1] - classes  # 1 if there is a column for the background
            if shift not in (0, 1):
                raise InputError(f"scores of {scores.shape[1]} classes, want {classes}: --classes")
            for label in range(1, classes + 1):
                column = scores[:, label - 1 + shift, None]
                yield Path(key).stem, label, np.hstack([boxes[:, -4:], column])
        return
    shift = len(content) - classes
    if shift not in (0, 1) or any(len(row) != len(images) for row in content[shift:]):
        raise InputError(
            f"the file has {len(content)} classes of {len(content[-1])} images, want {classes} of "
            f"{len(images)}: see --classes and --images"
        )
    for label, row in enumerate(content[shift:], start=1):
        for image_id, found in zip(images, row, strict=True):
            yield image_id, label, np.asarray(found, dtype=float).reshape(-1, 5)


def main() -> None:
    """Read, convert, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="an image id in each line")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--classes", default=",".join(VOC_CLASSES), help="in the file's order")
    parser.add_argument("--variable", default="boxes", help="name of the cell array in a .mat")
    parser.add_argument("--top", type=int, default=100, help="boxes per photo at most")
    parser.add_argument("--min-score", type=float, default=0.0)
    parser.add_argument("--nms", type=float, help="class-wise suppression, e.g. 0.3")
    parser.add_argument("--tags", help="the tags that the detector was trained on, for the record")
    parser.add_argument("--boxes", help="the drawn boxes that it was trained on, if any")
    parser.add_argument("--unrestricted", action="store_true", help="run any pickle")
    args = parser.parse_args()
    if not (args.tags or args.boxes):
        parser.error("say what the detector was trained on: --tags, and --boxes if any")

    images = args.images.read_text().split()
    classes = args.classes.split(",")
    first = 1 if args.file.suffix == ".mat" else 0  # MATLAB counts pixels from 1
    parts: dict[str, list[ImageBoxes]] = {image_id: [] for image_id in images}
    content = load(args.file, args.unrestricted, args.variable)
    for image_id, label, rows in rows_of(content, images, len(classes)):
        if image_id not in parts:
            continue
        table = torch.from_numpy(rows).float()
        table[:, :2] -= first
        table[:, 2:4] += 1 - first  # these codes count the last pixel in
        table = table[table[:, 4] >= args.min_score]
        labels = torch.full((len(table),), label)
        parts[image_id].append(ImageBoxes(table[:, :4], labels, table[:, 4]))
    boxes = {image_id: ImageBoxes.cat(own) for image_id, own in parts.items()}
    if args.nms is not None:
        boxes = {image_id: own.nms(args.nms) for image_id, own in boxes.items()}
    boxes = {image_id: own.top(args.top) for image_id, own in boxes.items()}
    ledger = SupervisionLedger(tags=args.tags, boxes=args.boxes)
    write_boxes(args.out, boxes, classes, ledger, {"converted from": args.file.name})
    print(f"{sum(map(len, boxes.values()))} boxes of {len(boxes)} photos in {args.out}")


if __name__ == "__main__":
    main()
