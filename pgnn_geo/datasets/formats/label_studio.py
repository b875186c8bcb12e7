"""Label Studio's JSON: a photo has the choices of its annotations, and its regions' labels."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pgnn_geo.datasets.formats.base import TagFile, TagFormat, Tags, collect

#: What Label Studio puts before the name of a file that was uploaded.
_UPLOADED = re.compile(r"[0-9a-f]{8}-")


def _fits(file: TagFile) -> bool:
    first = file.json[0] if isinstance(file.json, list) and file.json else None
    return isinstance(first, dict) and isinstance(first.get("data"), dict)


def _read(file: TagFile) -> Tags:
    """Read the tags that all annotators gave together; a skipped annotation says nothing."""
    pairs, photos = [], []
    for task in file.json:
        photo = _photo(task["data"])
        photos.append(photo)
        # None at all are those of a task that nobody has labelled yet, as "tasks only" has it.
        done = [e for e in task.get("annotations") or () if not e.get("was_cancelled")]
        pairs += [
            (photo, name) for e in done for part in e.get("result") or () for name in _names(part)
        ]
    return collect(pairs, photos)


#: What JSON-MIN puts beside the fields of a task and of its annotation.
_BESIDE = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}


def _fits_min(file: TagFile) -> bool:
    first = file.json[0] if isinstance(file.json, list) and file.json else None
    return isinstance(first, dict) and "annotation_id" in first and "data" not in first


def _read_min(file: TagFile) -> Tags:
    """Read one record for each annotation of a task.

    A field of text may be a single choice or another field of the task: it is a choice if it is
    one of several elsewhere, or if there is no other field of text.
    """
    records: list[dict[str, Any]] = file.json
    key = _image_key(records[0])
    fields = dict.fromkeys(name for own in records for name in own)
    fields = dict.fromkeys(name for name in fields if name not in (key, *_BESIDE))
    texts = [name for name in fields if any(isinstance(own.get(name), str) for own in records)]
    chosen = {name for own in records for name in fields if "choices" in _parts_of(own.get(name))}
    if not chosen & set(texts) and len(texts) > 1:
        raise ValueError(
            f"any of the fields {', '.join(texts)} may be the class; export JSON in place of "
            "JSON-MIN"
        )
    chosen = chosen or set(texts)
    pairs, photos = [], []
    for own in records:
        photos.append(_photo({key: own[key]}))
        for name in fields:
            value = own.get(name)
            if isinstance(value, str) and name in chosen:
                pairs.append((photos[-1], value))
            parts = value if isinstance(value, list) else [value]
            names = (n for p in parts if isinstance(p, dict) for n in _names({"value": p}))
            pairs += [(photos[-1], each) for each in names]
    return collect(pairs, photos)


def _parts_of(value: Any) -> dict[str, Any]:
    parts = value if isinstance(value, list) else [value]
    return {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}


def _image_key(data: dict[str, Any]) -> str:
    """The field that holds the photo's address: by its name, or the first."""
    return next((key for key in ("image", "img", "photo") if key in data), next(iter(data)))


def _photo(data: dict[str, Any]) -> str:
    """The file of a task: uploaded, in local storage, in a bucket or at an address."""
    address = urlsplit(str(data[_image_key(data)]))
    local = parse_qs(address.query).get("d")
    path = local[0] if local else unquote(address.path)
    folder, slash, name = path.rpartition("/")
    if "/upload/" in f"{folder}/":
        name = _UPLOADED.sub("", name, count=1)
        return name  # below a number of the project, which is nobody's folder
    return (folder + slash + name).lstrip("/")


def _names(part: dict[str, Any]) -> Iterator[str]:
    """The classes of one part of a result: choices, or labels of a box, a polygon, a brush."""
    for key, names in part.get("value", {}).items():
        if key in ("choices", "taxonomy") or key.endswith("labels"):
            yield from (str(name[-1] if isinstance(name, list) else name) for name in names)


#: `Label Studio <https://labelstud.io/guide/export>`_, the format that it calls JSON.
LABEL_STUDIO = TagFormat("label_studio", "Label Studio JSON", _fits, _read)

#: The format that it calls JSON-MIN.
LABEL_STUDIO_MIN = TagFormat("label_studio_min", "Label Studio JSON-MIN", _fits_min, _read_min)
