"""Boxes in files: COCO results JSON, and beside it a record of what made them."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import clip_boxes_to_image

from pgnn_geo.boxes.image_boxes import BoxSource, ImageBoxes, box_problems, raise_for_rows
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.listing import first_of
from pgnn_geo.errors import InputError
from pgnn_geo.features.views import Progress, no_progress
from pgnn_geo.io.files import atomic_write, parse_json, write_json
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.ranks import ALONE, Ranks

_VERSION = 1


class BoxFile:
    """Boxes read from `COCO results JSON <https://cocodataset.org/#format-results>`_.

    A list of ``{"image_id": .., "category_id": .., "bbox": [x, y, width, height], "score": ..}``
    with scores in :math:`[0, 1]`. An image id is the data set's own, or its digits as a number:
    ``2007000032`` for ``"2007_000032"``, ``139`` for ``"000000000139"``. A category is 1..K in the
    order of the data set's classes, or the name of a class; a file written by :func:`write_boxes`
    says what its numbers mean. Boxes that reach half a pixel beyond the photo at most are cut at
    its border.

    Args:
        path (str or PathLike): The file.
        dataset (TaggedDataset): The photos and classes.
        categories (sequence of dict, optional): What the numbers mean, as in COCO JSON:
            :obj:`[{"id": 17, "name": "cat"}, ...]`.
        skip_unknown (bool): Leave out boxes of images and classes that the data set does not
            have; otherwise they are errors. (default: :obj:`False`)

    Raises:
        InputError: If the file cannot be read, a photo cannot, the record says that the file does
            not cover all photos, or there are boxes that cannot be used: how many, and the first
            of each kind.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dataset: TaggedDataset,
        categories: Sequence[Mapping[str, Any]] | None = None,
        skip_unknown: bool = False,
    ) -> None:
        self.path = Path(path)
        content = _read(self.path)
        entries = _entries(content, self.path)
        record = _read_record(self.path, content)
        if record is not None and (
            missing := sorted(set(dataset.image_ids) - set(record["images"]))
        ):
            raise InputError(f"'{path}' was not made for all photos; it lacks {first_of(missing)}")
        names = record["classes"] if record is not None and categories is None else None
        labels = _label_table(dataset.classes, categories, names, self.path)
        self._boxes = _by_image(entries, dataset, labels, skip_unknown, f"'{path}'")
        self._image_ids = set(dataset.image_ids)
        if record is None:
            self.ledger = SupervisionLedger(boxes=f"{self.path.name} (origin not recorded)")
        else:
            self.ledger = SupervisionLedger.from_dict(record["ledger"])

    def __repr__(self) -> str:
        count = sum(len(boxes) for boxes in self._boxes.values())
        return f"{self.__class__.__name__}('{self.path}', boxes={count})"

    def __call__(self, image_id: str) -> ImageBoxes:
        """The boxes of a photo in the order of the file.

        Raises:
            InputError: If the data set has no such photo.
        """
        if image_id not in self._image_ids:
            raise InputError(f"'{self.path}' was not read for image '{image_id}'")
        return self._boxes.get(image_id, ImageBoxes.empty())


def write_boxes(
    path: str | os.PathLike[str],
    boxes: Mapping[str, ImageBoxes],
    classes: Sequence[str],
    ledger: SupervisionLedger,
    made_from: Mapping[str, Any] | None = None,
) -> None:
    """Write boxes as COCO results JSON, and beside it ``NAME.record.json``; both atomically.

    The record holds what the format has no place for: the classes, the photos (those without a
    box too), the supervision, :obj:`made_from`, and a digest of the file that it belongs to.

    Args:
        path (str or PathLike): The JSON file.
        boxes (mapping): The boxes of each image id.
        classes (sequence of str): Names of the classes 1..K.
        ledger (SupervisionLedger): What the boxes were made from.
        made_from (mapping, optional): JSON values that tell these boxes from others, such as the
            digest of a model and its settings; :func:`cached_boxes` compares them.

    Raises:
        InputError: If a box has no area, is of no class, or holds values that are not numbers.
    """
    table = ImageBoxes.cat(list(boxes.values()))
    owners = [image_id for image_id, own in boxes.items() for _ in range(len(own))]
    anywhere = dict.fromkeys(boxes, (float("inf"), float("inf")))
    raise_for_rows(
        box_problems(table, owners, anywhere, len(classes)),
        lambda row: f"{table.boxes[row].tolist()} of image '{owners[row]}'",
        len(table),
        f"boxes for '{path}'",
    )
    corners = table.boxes.double()  # so that x + (x2 - x) is x2 again
    rows = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    entries = [
        {"image_id": image_id, "category_id": label, "bbox": row, "score": score}
        for image_id, label, row, score in zip(
            owners, table.classes.tolist(), rows, table.scores.tolist(), strict=True
        )
    ]
    content = json.dumps(entries).encode()
    with atomic_write(path) as handle:
        handle.write(content)
    record = {
        "version": _VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "classes": list(classes),
        "ledger": ledger.to_dict(),
        "made_from": made_from,
        "images": list(boxes),
    }
    write_json(_record_path(Path(path)), record)


def box_record(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What :func:`write_boxes` wrote beside a file of boxes; :obj:`None` if there is no such file.

    Also :obj:`None` without a record, or with one that belongs to another content.

    Args:
        path (str or PathLike): The JSON file of the boxes.

    Returns:
        The :obj:`classes`, :obj:`images`, :obj:`ledger` and :obj:`made_from` of the boxes.

    Raises:
        InputError: If a file is there that cannot be read.
    """
    target = Path(path)
    return _read_record(target, _read(target)) if target.is_file() else None


def cached_boxes(
    path: str | os.PathLike[str],
    source: BoxSource,
    dataset: TaggedDataset,
    made_from: Mapping[str, Any],
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> BoxFile:
    """The boxes of a source from a file, written first unless it is there and made the same way.

    Args:
        path (str or PathLike): The JSON file, see :func:`write_boxes`.
        source (BoxSource): Asked for every photo if the file has to be written.
        dataset (TaggedDataset): The photos.
        made_from (mapping): JSON values that say what makes the boxes; boxes made from anything
            else are replaced.
        progress (callable, optional): Progress display.
        ranks (Ranks): The processes that share the photos; each asks its source for its own, and
            the first writes the file. (default: this one alone)

    Raises:
        InputError: If the source or the file cannot be used.
    """
    target = Path(path)
    wanted = json.loads(json.dumps(made_from))

    def is_there() -> bool:
        record = box_record(target)
        return (
            record is not None
            and (record["made_from"], record["classes"]) == (wanted, list(dataset.classes))
            and set(dataset.image_ids) <= set(record["images"])
        )

    if not ranks.first(is_there):
        own = ranks.share(dataset.image_ids)
        found = [(image_id, source(image_id)) for image_id in progress(own, "boxes", len(own))]
        boxes = dict(pair for part in ranks.gather(found) for pair in part)
        ranks.first(lambda: write_boxes(target, boxes, dataset.classes, source.ledger, wanted))
    return BoxFile(target, dataset, skip_unknown=True)  # it may hold more photos


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"boxes '{path}' cannot be read: {error}") from error


def _entries(content: bytes, path: Path) -> list[Any]:
    try:
        entries = parse_json(content)
    except ValueError as error:
        raise InputError(f"boxes '{path}' are not JSON: {error}") from error
    if isinstance(entries, dict) and "annotations" in entries:
        raise InputError(f"'{path}' holds COCO annotations; want COCO results, a list of boxes")
    if not isinstance(entries, list):
        raise InputError(f"'{path}' must hold a list of boxes, see BoxFile; got {type(entries)}")
    return entries


def _record_path(path: Path) -> Path:
    return path.with_suffix(".record.json")


def _read_record(path: Path, content: bytes) -> dict[str, Any] | None:
    """The record beside a file, if there is one and it belongs to this content."""
    place = _record_path(path)
    if not place.is_file():
        return None
    try:
        record: dict[str, Any] = parse_json(_read(place))
        current = record["sha256"] == hashlib.sha256(content).hexdigest()
        return record if current and record["version"] == _VERSION else None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{place}' is damaged ({error!r}); delete it") from error


def _label_table(
    classes: Sequence[str],
    categories: Sequence[Mapping[str, Any]] | None,
    names: Sequence[str] | None,
    path: Path,
) -> dict[int | str, int]:
    """The label of each category, by its number and by its name."""
    by_name: dict[int | str, int] = {name: label for label, name in enumerate(classes, start=1)}
    if categories is None:
        numbered = dict(enumerate(classes if names is None else names, start=1))
    else:
        try:
            numbered = {entry["id"]: entry["name"] for entry in categories}
        except (KeyError, TypeError) as error:
            raise InputError(
                f'categories for \'{path}\': want [{{"id": 1, "name": "cat"}}, ..]; {error!r}'
            ) from error
    known = {number: by_name[name] for number, name in numbered.items() if name in by_name}
    return by_name | known


def _image_table(image_ids: Sequence[str]) -> dict[int | str, str]:
    """The image id that a string or number stands for; numbers that fit two ids are left out."""
    digits = {image_id: image_id.replace("_", "") for image_id in image_ids}
    numbers = {i: int(text) for i, text in digits.items() if text.isascii() and text.isdigit()}
    count = Counter(numbers.values())
    table: dict[int | str, str] = {image_id: image_id for image_id in image_ids}
    table |= {number: i for i, number in numbers.items() if count[number] == 1}
    return table


def _by_image(
    entries: Sequence[Any],
    dataset: TaggedDataset,
    labels: Mapping[int | str, int],
    skip_unknown: bool,
    source: str,
) -> dict[str, ImageBoxes]:
    """The boxes of each photo; one error for all entries that cannot be used."""
    rows, owners, boxes, torn = _parsed(entries, _image_table(dataset.image_ids), labels)
    if skip_unknown:
        kept = [i for i, owner in enumerate(owners) if owner and boxes.classes[i]]
        rows, owners = [rows[i] for i in kept], [owners[i] for i in kept]
        boxes = boxes.pick(torch.tensor(kept, dtype=torch.long))
    index = {image_id: i for i, image_id in enumerate(dataset.image_ids)}
    used = sorted(set(owners) - {""}, key=index.__getitem__)
    with ThreadPoolExecutor() as pool:
        sizes = dict(zip(used, pool.map(lambda i: dataset.photo_size(index[i]), used), strict=True))
    found = box_problems(boxes, owners, sizes, len(dataset.classes))
    problems = {kind: [rows[i] for i in bad] for kind, bad in found.items()}
    if torn:
        problems = {"without a valid image_id, category_id, bbox or score": torn, **problems}
    raise_for_rows(
        problems, lambda row: f"entry {row} {_short(entries[row])}", len(entries), source
    )
    places: dict[str, list[int]] = {image_id: [] for image_id in used}
    for place, owner in enumerate(owners):
        places[owner].append(place)
    result = {}
    for image_id, own in places.items():
        part = boxes.pick(torch.tensor(own))
        inside = clip_boxes_to_image(part.boxes, sizes[image_id])
        result[image_id] = ImageBoxes(inside, part.classes, part.scores)
    return result


def _parsed(
    entries: Sequence[Any], images: Mapping[int | str, str], labels: Mapping[int | str, int]
) -> tuple[list[int], list[str], ImageBoxes, list[int]]:
    """Rows, image ids ("" if unknown) and boxes (class 0 if unknown); rows that are no boxes."""
    rows: list[int] = []
    owners: list[str] = []
    values: list[list[float]] = []
    torn: list[int] = []
    for row, entry in enumerate(entries):
        try:
            owner, label = images.get(entry["image_id"], ""), labels.get(entry["category_id"], 0)
            x, y, width, height = map(_number, entry["bbox"])
            values.append([x, y, x + width, y + height, _number(entry["score"]), label])
        except (KeyError, TypeError, ValueError, OverflowError):
            torn.append(row)
            continue
        rows.append(row)
        owners.append(owner)
    table = torch.tensor(values, dtype=torch.double).view(-1, 6)
    boxes = ImageBoxes(table[:, :4].float(), table[:, 5].long(), table[:, 4].float())
    return rows, owners, boxes, torn


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _short(entry: Any) -> str:
    text = json.dumps(entry)
    return text if len(text) <= 120 else text[:117] + "..."
