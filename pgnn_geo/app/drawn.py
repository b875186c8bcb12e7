"""Masks, scribbles and boxes that people drew for some photos, in what stage 2 learns."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.formats.base import TagFile
from pgnn_geo.datasets.formats.coco import COCO
from pgnn_geo.datasets.listing import first_of, list_masks, match_photos, match_rows
from pgnn_geo.errors import InputError, note
from pgnn_geo.io.files import mark_results
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import load_mask, save_mask
from pgnn_geo.labels.drawn import with_strokes, within_boxes


class ClassBoxes(NamedTuple):
    """The boxes that were drawn in one photo."""

    boxes: Tensor  #: :math:`(n, 4)`, x1, y1, x2, y2 in pixels
    classes: Tensor  #: :math:`(n)`, 1..K


class Drawn(NamedTuple):
    """What was drawn, by the number of the photo."""

    source: Path
    masks: Mapping[int, Path]
    boxes: Mapping[int, ClassBoxes]

    @property
    def ledger(self) -> SupervisionLedger:
        """What labels with it are made from, beside what they were before."""
        said = f"drawn in {len(self.masks) or len(self.boxes)} photos ({self.source.name})"
        return SupervisionLedger(masks=said) if self.masks else SupervisionLedger(boxes=said)


def read_drawn(dataset: TaggedDataset, source: Path) -> Drawn:
    """Read what was drawn for some of the photos.

    Args:
        dataset (TaggedDataset): The photos, with their classes.
        source (Path): A folder of label images, named as the photos are, in which 255 is what was
            not drawn; or a COCO JSON file, of which the boxes are read.

    Raises:
        InputError: If it is neither, is damaged, is of no photo, or does not fit the photos: wrong
            sizes, labels of no class, names of classes that are not there.
    """
    if source.is_dir():
        return Drawn(source, _read_masks(dataset, source), {})
    if not source.is_file():
        raise InputError(f"drawn='{source}': want a folder of label images or a COCO JSON file")
    file = TagFile(source)
    if not COCO.fits(file):
        raise InputError(
            f"drawn='{source}' is not COCO JSON: want a file with images, annotations and "
            "categories, or a folder of label images"
        )
    try:
        return Drawn(source, {}, _read_boxes(dataset, file))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"drawn='{source}' is damaged: {error!r}") from error


def _names(dataset: TaggedDataset) -> dict[str, int]:
    """Numbers of the photos, by their ids as file names."""
    return {f"{name}{dataset.image_path(i).suffix}": i for i, name in enumerate(dataset.image_ids)}


def _read_masks(dataset: TaggedDataset, folder: Path) -> dict[int, Path]:
    photos = _names(dataset)
    rows = match_rows(list_masks(folder), photos, folder, exact=False)
    if strange := [name for name in rows if name not in photos]:
        raise InputError(f"drawn='{folder}': label images of no photo: {first_of(strange)}")
    if not rows:
        raise InputError(f"drawn='{folder}': there is no PNG file in it")
    found = {photos[name]: path for name, path in rows.items()}
    some = dataset.subset(list(found)).with_masks(list(found.values()))
    if problems := some.check(decode=False):
        raise InputError("\n".join(problems))
    return found


def _read_boxes(dataset: TaggedDataset, file: TagFile) -> dict[int, ClassBoxes]:
    content, place = file.json, {name: i for i, name in enumerate(dataset.classes, 1)}
    names = {str(each["id"]): str(each["name"]) for each in content["categories"]}
    if not place.keys() & set(names.values()):
        raise InputError(
            f"drawn='{file.path}': none of its categories ({first_of(names.values())}) is a class "
            f"of these photos ({', '.join(dataset.classes)})"
        )
    numbers = [str(each["id"]) for each in content["images"]]
    photos = _names(dataset)
    called = [str(each["file_name"]) for each in content["images"]]
    meant = dict(zip(numbers, match_photos(called, photos, file.path, exact=False), strict=True))
    found: dict[int, list[tuple[int, list[float]]]] = {}
    others = set()
    for each in content["annotations"]:
        photo, name = meant[str(each["image_id"])], names[str(each["category_id"])]
        if name not in place:
            others.add(name)
        elif photo in photos:
            found.setdefault(photos[photo], []).append((place[name], _corners(each)))
    if not found:
        raise InputError(f"drawn='{file.path}' has no box of a class in any of these photos")
    if others:
        note(f"'{file.path}': boxes of no class of these photos are left out: {first_of(others)}")
    return {
        i: ClassBoxes(torch.tensor([box for _, box in rows]), torch.tensor([k for k, _ in rows]))
        for i, rows in sorted(found.items())
    }


def _corners(annotation: Mapping[str, Any]) -> list[float]:
    x, y, width, height = (float(value) for value in annotation["bbox"])
    if not (all(map(math.isfinite, (x, y))) and 0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"annotation {annotation.get('id')} has bbox {annotation['bbox']}")
    return [x, y, x + width, y + height]


def with_drawn(dataset: TaggedDataset, drawn: Drawn, out: Path) -> TaggedDataset:
    """Return photos in whose labels is what was drawn.

    Args:
        dataset (TaggedDataset): The photos, with the labels as masks.
        drawn (Drawn): What was drawn, see :func:`read_drawn`.
        out (Path): Where the labels that change are written.
    """
    mark_results(out)
    paths: list[Path] = []
    for i, name in enumerate(dataset.image_ids):
        path = dataset.mask_path(i)
        assert path is not None  # labels are of all photos
        if i in drawn.masks or i in drawn.boxes:
            path, labels = out / f"{name}.png", dataset.read_mask(i)
            if not path.is_file():
                if i in drawn.masks:
                    labels = with_strokes(labels, load_mask(drawn.masks[i], dataset.max_pixels))
                else:
                    labels = within_boxes(labels, *drawn.boxes[i])
                save_mask(path, labels)
        paths.append(path)
    return dataset.with_masks(paths)
