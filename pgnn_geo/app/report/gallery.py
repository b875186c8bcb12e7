"""The pictures of a report: small photos, label images and maps, and how good each photo is."""

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pgnn_geo.app.added_tags import with_added_tags
from pgnn_geo.app.labelling import CAM, EXPLAINED, MAPS
from pgnn_geo.app.report.runs import RESULTS, Run
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.features import Progress
from pgnn_geo.io.masks import load_mask, voc_palette
from pgnn_geo.metrics import ConfusionMatrix

#: Longer side of the pictures in pixels.
SIDE = 360

#: Draws of photos from which the intervals of figures are made.
DRAWS = 1000

#: Colours of maps from 0 to 1, as matplotlib's "inferno" has them.
_HEAT = [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)]


class Layer(NamedTuple):
    """Label images of the photos of a gallery, maps, or both."""

    key: str  #: in :obj:`RESULTS`, or "truth"
    title: str
    labels: Path | None  #: the folder of the label images
    maps: Path | None  #: the file of the maps


class Gallery(NamedTuple):
    """Photos that are shown together."""

    title: str
    photos: TaggedDataset
    truth: TaggedDataset | None
    layers: list[Layer]


class _Maps(NamedTuple):
    """Attention maps that label images were made from."""

    rows: NDArray[np.uint8]  #: one map after the other
    starts: NDArray[np.intp]  #: the row at which each photo's begin
    tags: Tensor  #: whose they are :obj:`[M, K]`


def galleries(run: Run) -> tuple[list[Gallery], list[str]]:
    """Return what there is to show of a run, and why the rest cannot be shown."""
    kinds: dict[str, list[str]] = {}
    for key, kind in RESULTS.items():
        if (run.folder / kind.labels).is_dir():
            kinds.setdefault(kind.split, []).append(key)
    found, notes = [], []
    for split, keys in kinds.items():
        try:
            data = DataConfig(**run.config["data"])
            if keys[0] in ("segmentation", "segmenter") and data.data != "folder":
                data = replace(data, split=run.metrics[split])
            if not Path(data.root).is_dir():
                raise InputError(f"there is no folder {data.root}")
            photos = data.build()
            truth = data.build(with_masks=True) if data.has_masks() else None
        except (InputError, TypeError, KeyError) as error:
            notes.append(f"{run.name}: its photos cannot be shown: {error}")
            continue
        folders = {key: run.folder / RESULTS[key].labels for key in keys}
        layers = [
            Layer(key, RESULTS[key].title, path, path / MAPS) for key, path in folders.items()
        ]
        if "cam" not in folders and "pgnn" in folders and (folders["pgnn"] / CAM).is_file():
            layers.insert(0, Layer("cam", "CAM", None, folders["pgnn"] / CAM))
        if truth is not None:
            layers.append(Layer("truth", "truth", None, None))
        found.append(Gallery(run.metrics[split] or "photos", photos, truth, layers))
    return found, notes


def write_gallery(
    gallery: Gallery, folder: Path, progress: Progress
) -> tuple[dict[str, Any], dict[str, list[float] | None]]:
    """Write the pictures of a gallery and return what the page says of its photos.

    Args:
        gallery (Gallery): The photos.
        folder (Path): Where the pictures go.
        progress (callable): Progress display.

    Returns:
        The entry of the page, and for each kind of result the 95 % interval of its mIoU.
    """
    folder.mkdir(parents=True)
    truth = {} if gallery.truth is None else _places(gallery.truth)
    maps = {layer.key: _maps(layer, gallery.photos) for layer in gallery.layers}
    sure = {layer.key: _confidences(layer) for layer in gallery.layers}
    work = partial(_photo, gallery, folder, truth, maps, sure)
    count = len(gallery.photos)
    with ThreadPoolExecutor() as pool:
        done = list(progress(pool.map(work, range(count)), "pictures", count))
    keys = [layer.key for layer in gallery.layers if layer.labels is not None]
    intervals = {
        key: _interval([counts[key] for _, counts in done if key in counts]) for key in keys
    }
    entry = {
        "title": gallery.title,
        "layers": [
            {
                "key": layer.key,
                "title": layer.title,
                "labels": layer.labels is not None or layer.key == "truth",
            }
            for layer in gallery.layers
        ],
        "photos": [photo for photo, _ in done],
    }
    return entry, intervals


def explained_script(gallery: Gallery) -> str | None:
    """Return the edges of the sample that lies beside the label images, as JSON."""
    files = [layer.labels / EXPLAINED for layer in gallery.layers if layer.labels is not None]
    return next((path.read_text() for path in files if path.is_file()), None)


def _photo(
    gallery: Gallery,
    folder: Path,
    truth: dict[str, int],
    maps: dict[str, _Maps | None],
    sure: dict[str, dict[tuple[str, str], float]],
    index: int,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write the pictures of one photo; return its entry and its counts for each result."""
    photos, classes = gallery.photos, gallery.photos.classes
    name = photos.image_ids[index]
    small = photos.thumbnail(index, SIDE)
    small.save(folder / f"{index}.jpg", quality=75)  # a twelfth of the time that WebP takes
    tags = [] if photos.tags is None else photos.tags[index].nonzero()[:, 0].tolist()
    true = None
    if gallery.truth is not None and name in truth:
        true = gallery.truth.read_mask(truth[name])
        _save_labels(folder / f"{index}-truth.png", true, small.size)
    scores: dict[str, Any] = {}
    counts: dict[str, Tensor] = {}
    shown = {label + 1 for label in tags}
    there = [] if true is None else ["truth"]
    mapped: dict[str, list[int]] = {}
    for layer in gallery.layers:
        if (own := maps[layer.key]) is not None:
            mapped[layer.key] = [label + 1 for label in own.tags[index].nonzero()[:, 0].tolist()]
            shown |= set(mapped[layer.key])
            values = own.rows[own.starts[index] : own.starts[index + 1]]
            for label, value in zip(mapped[layer.key], values, strict=True):
                _save_map(folder / f"{index}-{layer.key}-{label}.png", value)
        if layer.labels is None or not (path := layer.labels / f"{name}.png").is_file():
            continue
        mask = load_mask(path, photos.max_pixels)
        _save_labels(folder / f"{index}-{layer.key}.png", mask, small.size)
        there.append(layer.key)
        if true is not None:
            matrix = ConfusionMatrix(len(classes), classes)
            matrix.update(mask, true, name)
            counts[layer.key] = matrix.counts
            iou = matrix.compute().iou
            scores[layer.key] = {
                label: round(1000 * value)
                for label, value in enumerate(iou)
                if label and value == value
            }
            shown |= scores[layer.key].keys()
    entry: dict[str, Any] = {"id": name, "size": small.size, "tags": [t + 1 for t in tags]}
    entry["labels"] = sorted(shown)
    entry["there"] = there
    entry["maps"] = mapped
    entry["iou"] = scores
    entry["sure"] = {
        key: {
            label: round(1000 * known[name, classes[label - 1]])
            for label in entry["labels"]
            if (name, classes[label - 1]) in known
        }
        for key, known in sure.items()
        if known
    }
    return entry, counts


def _save_labels(path: Path, mask: Tensor, size: tuple[int, int]) -> None:
    """Write labels at the size of the small photo; background is transparent."""
    image = Image.fromarray(mask.numpy()).resize(size, Image.Resampling.NEAREST)
    image.putpalette(_label_colours())
    image.save(path, transparency=bytes([0, *[165] * 254, 110]), optimize=False)


def _save_map(path: Path, values: NDArray[np.uint8]) -> None:
    """Write a map in colours; what is low is transparent."""
    image = Image.fromarray(values)
    image.putpalette(_map_colours())
    image.save(path, transparency=bytes(range(40, 40 + 180)) + bytes([220] * 76))


@cache
def _label_colours() -> bytes:
    palette = voc_palette()
    palette[255] = 255
    return palette.tobytes()


@cache
def _map_colours() -> bytes:
    steps = np.linspace(0, 255, len(_HEAT))
    channels = [np.interp(np.arange(256), steps, channel) for channel in np.transpose(_HEAT)]
    return np.stack(channels, axis=1).round().astype(np.uint8).tobytes()


def _maps(layer: Layer, photos: TaggedDataset) -> _Maps | None:
    """The maps of a layer, if they were kept."""
    if layer.maps is None or photos.tags is None or not layer.maps.is_file():
        return None
    rows = np.load(layer.maps, mmap_mode="r", allow_pickle=False)
    tags = with_added_tags(photos, layer.maps.parent).tags
    assert tags is not None  # as those of the photos are not
    starts = np.concatenate([[0], tags.bool().sum(dim=1).cumsum(0).numpy()])
    return _Maps(rows, starts, tags) if len(rows) == starts[-1] else None


def _confidences(layer: Layer) -> dict[tuple[str, str], float]:
    """How sure labels are, by photo and class, from :obj:`review.csv` if it lies beside them."""
    if layer.labels is None or not (path := layer.labels / "review.csv").is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = csv.DictReader(handle)
            return {(row["image"], row["class"]): float(row["confidence"]) for row in rows}
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read: {error!r}; want the columns image, class, confidence"
        ) from error


def _places(dataset: TaggedDataset) -> dict[str, int]:
    return {name: index for index, name in enumerate(dataset.image_ids)}


def _interval(counts: Sequence[Tensor]) -> list[float] | None:
    """95 % interval of the mIoU by the bootstrap over photos, from their confusion matrices."""
    if len(counts) < 2:
        return None
    matrix = np.stack([each.numpy() for each in counts]).astype(np.float64)  # [M, K + 1, K + 2]
    hit = np.diagonal(matrix, axis1=1, axis2=2)
    union = matrix.sum(axis=2) - matrix[..., -1] + matrix[..., :-1].sum(axis=1) - hit
    draws = np.random.default_rng(0)
    values = []
    for _ in range(DRAWS):
        weight = np.bincount(draws.integers(len(counts), size=len(counts)), minlength=len(counts))
        total = weight @ union
        values.append((weight @ hit)[total > 0] / total[total > 0])
    low, high = np.percentile([value.mean() for value in values], [2.5, 97.5])
    return [float(low), float(high)]
