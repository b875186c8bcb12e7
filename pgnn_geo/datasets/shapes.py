"""An embedded data set, made by code, that shows the problem the method is for."""

import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgnn_geo.datasets.base import Transform
from pgnn_geo.datasets.voc import VOC2012
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import write_json
from pgnn_geo.io.masks import save_mask

SHAPES_CLASSES: tuple[str, ...] = ("fish", "bird", "beetle", "tree", "house")

_VERSION = 2  # of the drawings; a folder of another version is not reused
_RECORD = "shapes.json"
_Array = NDArray[np.float64]


class Shapes(VOC2012):
    r"""Drawn objects whose tag is betrayed by one small part, in VOC layout.

    An object is a large body in its class's pattern with one small, striking part: a fish's eye,
    a bird's beak, a beetle's shield, a tree's fruit, a house's window. The part occurs with its
    class only and always. The pattern lies in every image: on the body where the class is there,
    on a stone of about the same area, which is background, where it is not. Neither its presence
    nor its amount tells a tag, so a classifier learns the part, while the bodies of a class are
    alike across images. Every second image has one more stone, in any pattern, its own objects'
    included. Masks cover the whole object. About one image in three has objects of two classes.

    Image :math:`i` of a split depends on the seed, the split, :math:`i` and :obj:`size` only. The
    set is written to :obj:`root` once, as a whole or not at all, and then read by the very code
    that reads VOC.

    Args:
        root (str or PathLike): Folder of the set; made if it is missing or empty.
        split (str): :obj:`"train"` or :obj:`"val"`.
        num_images (tuple of int): Images in train and val. (default: :obj:`(160, 40)`)
        size (int): Side of the images in pixels. (default: :obj:`96`)
        seed (int): Seed. (default: :obj:`0`)
        with_masks (bool): Put masks into the items. (default: :obj:`False`)
        transform (callable, optional): Maps an item to an item.

    Raises:
        InputError: If :obj:`root` holds anything else, a set made with other arguments included,
            or cannot be written.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        num_images: tuple[int, int] = (160, 40),
        size: int = 96,
        seed: int = 0,
        with_masks: bool = False,
        transform: Transform | None = None,
    ) -> None:
        if split not in ("train", "val"):
            raise InputError(f"split: got {split!r}, want 'train' or 'val'")
        if min(num_images) < 1 or size < 32 or seed < 0:
            raise InputError(
                "num_images must be 1 or more, size 32 or more, seed 0 or more; "
                f"got {num_images}, {size}, {seed}"
            )
        record = {"version": _VERSION, "num_images": [*num_images], "size": size, "seed": seed}
        try:
            if not _is_made(Path(root), record):
                _make(Path(root), record)
        except OSError as error:
            raise InputError(f"root '{root}' cannot be written: {error}") from error
        super().__init__(root, split, tags="csv", with_masks=with_masks, transform=transform)


class Scene(NamedTuple):
    r"""One drawing and what is where in it.

    Shapes:
        - **image:** :math:`(S, S, 3)` uint8
        - **mask:** :math:`(S, S)` uint8, 0 or the label 1..K of the object
        - **part:** :math:`(S, S)` uint8, 0 or the label of the object whose striking part it is
        - **stone:** :math:`(S, S)` uint8, 0 or the label of the class whose pattern a stone has
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    part: NDArray[np.uint8]
    stone: NDArray[np.uint8]


def draw_scene(seed: int, split: str, index: int, size: int) -> Scene:
    """Draw one image of :class:`Shapes`, with the maps that the files do not keep.

    Args:
        seed (int): Seed of the set.
        split (str): :obj:`"train"` or :obj:`"val"`.
        index (int): Number of the image in its split.
        size (int): Side in pixels.
    """
    rng = np.random.default_rng([seed, ("train", "val").index(split), index])
    # Classes take turns, so that a small set is balanced; the second one is drawn.
    labels = [index % len(_KINDS) + 1]
    if rng.random() < 1 / 3:
        labels.append((index + int(rng.integers(1, len(_KINDS)))) % len(_KINDS) + 1)
    # Every pattern in every image: on the body, or on a stone of about its area; in every second
    # image on one more stone of any pattern.
    stones = [c for c in range(1, len(_KINDS) + 1) if c not in labels]
    stones += [int(rng.integers(1, len(_KINDS) + 1))] * (rng.random() < 1 / 2)
    low, high = (0.21, 0.28) if len(labels) == 1 else (0.19, 0.25)
    radii = [size * rng.uniform(low, high) for _ in labels]
    radii += [size * rng.uniform(0.12, 0.18) for _ in stones]
    centres = _place(rng, radii, size)

    image = _background(rng, size)
    layers = [np.zeros((size, size), dtype=np.uint8) for _ in range(3)]
    mask, part, stone = layers
    things = list(zip(labels + stones, centres, radii, strict=True))
    for label, centre, radius in things[len(labels) :]:  # stones first: objects lie on top
        u, v = _local(rng, size, centre, radius, turn=np.pi)
        blob = _blob(rng, u, v)
        _paint(image, blob * radius, _pattern(rng, label, u * radius, v * radius, size))
        stone[blob < 0] = label
    for label, centre, radius in things[: len(labels)]:
        kind = _KINDS[label - 1]
        u, v = _local(rng, size, centre, radius, turn=0.35)
        body, spot = kind.body(u, v), kind.part(u, v)
        _paint(image, body * radius, _pattern(rng, label, u * radius, v * radius, size))
        _paint(image, spot * radius, kind.ink(u, v) * rng.uniform(0.9, 1.0))
        whole = np.minimum(body, spot) < 0
        mask[whole], part[whole], stone[whole] = label, 0, 0
        part[spot < 0] = label
    grain = rng.normal(0.0, 0.02, size=(size, size, 1))
    pixels = np.clip(np.rint((image + grain) * 255), 0, 255).astype(np.uint8)
    return Scene(pixels, mask, part, stone)


# Shapes are functions of local coordinates (u to the right, v down, the object within the unit
# circle) that are negative inside and grow like a distance.
def _ellipse(u: _Array, v: _Array, x: float, y: float, a: float, b: float) -> _Array:
    return (np.hypot((u - x) / a, (v - y) / b) - 1) * min(a, b)


def _box(u: _Array, v: _Array, x: float, y: float, a: float, b: float) -> _Array:
    return np.maximum(np.abs(u - x) - a, np.abs(v - y) - b)


def _triangle(u: _Array, v: _Array, *corners: tuple[float, float]) -> _Array:
    """Inside of a triangle whose corners run clockwise on the screen."""
    sides = []
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = np.hypot(x2 - x1, y2 - y1)
        sides.append(((y2 - y1) * (u - x1) - (x2 - x1) * (v - y1)) / length)
    return np.maximum.reduce(sides)


def _union(*shapes: _Array) -> _Array:
    return np.minimum.reduce(shapes)


def _two_inks(first: tuple[float, ...], second: tuple[float, ...], where: _Array) -> _Array:
    return np.where((where < 0)[..., None], np.array(second), np.array(first))


class _Kind(NamedTuple):
    body: Callable[[_Array, _Array], _Array]
    part: Callable[[_Array, _Array], _Array]
    ink: Callable[[_Array, _Array], _Array]  # colours of the part
    colours: tuple[tuple[float, ...], tuple[float, ...]]  # of the body's pattern


_KINDS = (
    _Kind(  # fish: an eye
        lambda u, v: _union(
            _ellipse(u, v, 0.15, 0, 0.8, 0.5),
            _triangle(u, v, (-0.45, 0), (-1, 0.5), (-1, -0.5)),
        ),
        lambda u, v: _ellipse(u, v, 0.6, -0.1, 0.2, 0.2),
        lambda u, v: _two_inks((1, 0.1, 0.1), (1, 1, 1), _ellipse(u, v, 0.6, -0.1, 0.09, 0.09)),
        ((0.36, 0.48, 0.58), (0.62, 0.72, 0.78)),
    ),
    _Kind(  # bird: a beak
        lambda u, v: _union(
            _ellipse(u, v, -0.05, 0.2, 0.65, 0.42),
            _ellipse(u, v, 0.5, -0.25, 0.28, 0.28),
            _triangle(u, v, (-0.4, 0.3), (-0.75, -0.75), (0.25, 0.1)),
        ),
        lambda u, v: _triangle(u, v, (0.62, -0.5), (1.15, -0.2), (0.62, 0.05)),
        lambda u, v: _two_inks((1, 0.85, 0), (0.1, 0.1, 0.1), np.abs(v + 0.22) - 0.06),
        ((0.47, 0.40, 0.50), (0.74, 0.66, 0.76)),
    ),
    _Kind(  # beetle: a shield behind the head
        lambda u, v: _union(
            _ellipse(u, v, 0, 0, 0.78, 0.58),
            *(_box(u, v, x, 0, 0.06, 0.85) for x in (-0.45, 0.0, 0.45)),
        ),
        lambda u, v: _ellipse(u, v, 0.72, 0, 0.2, 0.24),
        lambda u, v: _two_inks(
            (1, 0, 0.9), (1, 1, 1), np.minimum(np.abs(u - 0.72), np.abs(v)) - 0.05
        ),
        ((0.42, 0.33, 0.24), (0.72, 0.60, 0.44)),
    ),
    _Kind(  # tree: a fruit
        lambda u, v: _union(
            _ellipse(u, v, 0, -0.35, 0.72, 0.55),
            _ellipse(u, v, -0.35, -0.05, 0.42, 0.34),
            _ellipse(u, v, 0.38, -0.08, 0.42, 0.34),
            _box(u, v, 0, 0.55, 0.16, 0.45),
        ),
        lambda u, v: _ellipse(u, v, 0.3, -0.1, 0.19, 0.19),
        lambda u, v: _two_inks((1, 0.5, 0), (0.35, 0.1, 0), np.abs(u - 0.3) - 0.05),
        ((0.28, 0.42, 0.26), (0.52, 0.64, 0.42)),
    ),
    _Kind(  # house: a window
        lambda u, v: _union(
            _box(u, v, 0, 0.35, 0.62, 0.5),
            _triangle(u, v, (0, -0.9), (0.85, -0.1), (-0.85, -0.1)),
        ),
        lambda u, v: _box(u, v, -0.22, 0.25, 0.19, 0.19),
        lambda u, v: _two_inks(
            (0, 0.95, 1), (0, 0.1, 0.5), np.minimum(np.abs(u + 0.22), np.abs(v - 0.25)) - 0.05
        ),
        ((0.50, 0.36, 0.32), (0.72, 0.58, 0.52)),
    ),
)


def _pattern(rng: np.random.Generator, label: int, u: _Array, v: _Array, size: int) -> _Array:
    """The pattern of a class, on bodies and stones alike; u, v in pixels of the thing."""
    step = 2 * np.pi / (size / 96 * rng.uniform(6.5, 8.5))
    u, v = step * u + rng.uniform(0, 6.3), step * v + rng.uniform(0, 6.3)
    wave = (
        lambda: np.sin(u + 0.8 * np.sin(0.7 * v)),  # fish: wavy stripes
        lambda: np.sin(v + 1.2 * np.sign(np.sin(u / 2)) * np.sin(u)),  # bird: barbs
        lambda: np.cos(u) + np.cos(v) - 0.6,  # beetle: dots
        lambda: np.sin(u + v) * np.sin(0.6 * (u - v)),  # tree: leaves
        lambda: np.maximum(np.cos(v), np.cos(u / 2 + np.pi * (np.sin(v / 2) > 0))) - 0.85,  # bricks
    )[label - 1]()
    mix = (0.5 + 0.5 * np.clip(3 * wave, -1, 1))[..., None]
    dark, light = (np.array(c) for c in _KINDS[label - 1].colours)
    tint = rng.normal(0, 0.03, size=3)
    return (dark + (light - dark) * mix + tint) * rng.uniform(0.85, 1.15)


def _background(rng: np.random.Generator, size: int) -> _Array:
    """Two muted colours mixed by smooth noise of a few sizes."""
    noise = np.zeros((size, size))
    for cells, strength in ((3, 0.5), (8, 0.3), (24, 0.2)):
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        noise += strength * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    grey = rng.uniform(0.3, 0.7)
    first, second = grey + rng.uniform(-0.13, 0.13, size=(2, 3))
    mix = np.clip((noise - 0.5) * 2 + 0.5, 0, 1)[..., None]
    return first + (second - first) * mix


def _blob(rng: np.random.Generator, u: _Array, v: _Array) -> _Array:
    """A stone: a circle with a wavy edge."""
    angle, edge = np.arctan2(v, u), np.ones_like(u)
    for k in (2, 3, 4):
        edge += rng.uniform(0, 0.16) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(u, v) - edge


def _local(
    rng: np.random.Generator, size: int, centre: _Array, radius: float, turn: float
) -> tuple[_Array, _Array]:
    """Pixel centres in the coordinates of a thing, randomly turned, stretched and mirrored."""
    y, x = np.mgrid[:size, :size] + 0.5
    angle, stretch, side = rng.uniform(-turn, turn), rng.uniform(0.85, 1.15), rng.choice([-1, 1])
    dx, dy = (x - centre[0]) / radius, (y - centre[1]) / radius
    u = dx * np.cos(angle) + dy * np.sin(angle)
    v = dy * np.cos(angle) - dx * np.sin(angle)
    return side * u * stretch, v / stretch


def _place(rng: np.random.Generator, radii: list[float], size: int) -> list[_Array]:
    """Centres so that things, the first ones first, stay inside and, if possible, apart."""
    centres: list[_Array] = []
    for radius in radii:
        tries = rng.uniform(1.05 * radius, size - 1.05 * radius, size=(200, 2))
        gaps = np.full(len(tries), np.inf)
        for centre, other in zip(centres, radii, strict=False):
            gaps = np.minimum(gaps, np.hypot(*(tries - centre).T) - other - radius)
        apart = np.flatnonzero(gaps > 0)
        centres.append(tries[apart[0] if len(apart) else gaps.argmax()])
    return centres


def _paint(image: _Array, distance: _Array, colour: _Array) -> None:
    """Draw a shape over the image in place; edges blend over one pixel."""
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    image += cover * (colour - image)


def _is_made(root: Path, record: dict[str, Any]) -> bool:
    if (root / _RECORD).is_file():
        try:
            found = json.loads((root / _RECORD).read_text())
        except ValueError:
            found = "what cannot be read"
        if found != record:
            raise InputError(
                f"root '{root}' holds shapes made with {found}, asked for {record}; "
                "use another folder or delete it"
            )
        return True
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"root '{root}' holds something else; want a new or empty folder")
    return False


def _make(root: Path, record: dict[str, Any]) -> None:
    """Write the set beside root and rename it: whoever sees root sees all of it."""
    root = root.absolute()
    root.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{root.name}.unfinished."
    for left in root.parent.glob(f"{glob.escape(prefix)}*"):
        if time.time() - left.stat().st_mtime > 3600:  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=root.parent))
    try:
        _write(work / "set", record)
        try:
            if root.is_dir():
                root.rmdir()  # empty, as _is_made found
            os.rename(work / "set", root)
        except OSError:
            if not _is_made(root, record):  # else another process was faster, with the same set
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(root: Path, record: dict[str, Any]) -> None:
    seed, size = record["seed"], record["size"]
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)

    def write(split: str, index: int) -> str:
        scene, image_id = draw_scene(seed, split, index, size), f"{split}_{index:05d}"
        photo = root / "JPEGImages" / f"{image_id}.jpg"
        Image.fromarray(scene.image).save(photo, quality=95, subsampling=0)
        save_mask(root / "SegmentationClass" / f"{image_id}.png", scene.mask)
        labels = [SHAPES_CLASSES[v - 1] for v in np.unique(scene.mask) if v]
        return f"{image_id},{' '.join(labels)}\n"

    table = ["image,labels\n"]
    with ThreadPoolExecutor() as pool:
        for split, count in zip(("train", "val"), record["num_images"], strict=True):
            rows = list(pool.map(write, [split] * count, range(count)))
            ids = "".join(row.split(",")[0] + "\n" for row in rows)
            (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(ids)
            table += rows
    (root / "image_labels.csv").write_text("".join(table))
    (root / "classes.txt").write_text("\n".join(SHAPES_CLASSES) + "\n")
    write_json(root / _RECORD, record)
