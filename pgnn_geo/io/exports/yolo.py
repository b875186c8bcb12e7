"""YOLO segmentation: polygons of the parts of each class, as Ultralytics reads them."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgnn_geo.io.exports.base import Export, Labelled, labels_in

#: What Ultralytics opens; a photo with another ending is called ``.jpg``.
_KNOWN = {".jpg", ".jpeg", ".png"}


def _write(folder: Path, photos: Iterable[Labelled], classes: Sequence[str]) -> None:
    for photo in photos:
        suffix = photo.photo.suffix if photo.photo.suffix.lower() in _KNOWN else ".jpg"
        image = folder / "images" / "train" / (photo.image_id + suffix)
        text = folder / "labels" / "train" / f"{photo.image_id}.txt"
        for path in (image, text):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(photo.photo.resolve(), image)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(photo.photo, image)
        height, width = photo.mask.shape
        columns, rows = _numbers(width), _numbers(height)
        lines = []
        for label in labels_in(photo.mask, len(classes)):
            for points in polygons(photo.mask == label):
                numbers = "".join([columns[x] + rows[y] for x, y in points.tolist()])
                lines.append(f"{label - 1}{numbers}\n")
        text.write_text("".join(lines), encoding="utf-8")
    names = "".join(f"  {k}: {json.dumps(name)}\n" for k, name in enumerate(classes))
    # Without a path, Ultralytics takes the folder of this file.
    (folder / "data.yaml").write_text(
        f"train: images/train\nval: images/train\nnames:\n{names}", encoding="utf-8"
    )


@lru_cache(maxsize=64)
def _numbers(length: int) -> list[str]:
    """What a file has for each place along a side.

    Readers that cut off what is behind the point, and those that round, both get the pixel:
    Ultralytics and supervision.
    """
    return [f" {(place + 0.25) / length:.6f}" for place in range(length)]


def polygons(region: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """One polygon for each part of a region; filled, they are the region.

    A line of the format is one outline, so a hole is joined to it by a cut: the outline goes to
    the hole, around it, and back the same way. A cut runs from the leftmost pixel beside a hole to
    the left, as far as the part goes: to its outline, or to a hole that begins further left.

    Args:
        region (array): Booleans of shape :math:`(H, W)`.

    Returns:
        Corners :math:`(n, 2)` of each, column and row, at least three.
    """
    import cv2

    found, tree = cv2.findContours(region.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if tree is None:
        return []
    rings = [points[:, 0].astype(np.int64) for points in found]
    result = []
    for number, (_, _, hole, parent) in enumerate(tree[0].tolist()):
        if parent >= 0:
            continue
        holes = []
        while hole >= 0:
            holes.append(rings[hole].tolist())
            hole = int(tree[0][hole][0])
        ring = rings[number]
        result.append(_corners(_joined(ring.tolist(), holes, region) if holes else ring))
    return result


def _joined(
    outline: list[list[int]], holes: list[list[list[int]]], region: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The outline of a part with its holes: a ring of pixels."""
    points = list(outline)
    after = [*range(1, len(points)), 0]  # the next pixel of each on the ring
    place = {(x, y): k for k, (x, y) in reversed(list(enumerate(points)))}
    for ring in sorted(holes, key=min):
        start = ring.index(min(ring))
        ring = [*ring[start:], *ring[:start]]
        x, y = ring[0]
        while x > 0 and region[y, x - 1]:
            x -= 1
        here, first = place[x, y], len(points)
        points += [*ring, ring[0], points[here]]
        after += [*range(first + 1, len(points)), after[here]]
        after[here] = first
        for k, (px, py) in enumerate(ring, start=first):
            place.setdefault((px, py), k)
    order = [0]
    while (following := after[order[-1]]) != 0:
        order.append(following)
    return np.array([points[k] for k in order])


def _corners(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """A ring without the pixels at which it goes straight on; at least three points."""
    ring = np.concatenate([points[-1:], points, points[:1]])
    step = ring[1:] - ring[:-1]
    kept = points[(step[1:] != step[:-1]).any(axis=1)]
    return kept if len(kept) >= 3 else np.concatenate([points[:1]] * (3 - len(kept)) + [kept])


#: What is not decided becomes background, as the format has no place for it.
YOLO = Export("yolo", "YOLO segmentation, polygons", _write, ("cv2",))
