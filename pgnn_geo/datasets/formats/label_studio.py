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
    pairs, photos = [], []
    for task in file.json:
        photo = _photo(task["data"])
        photos.append(photo)
        done = [entry for entry in task["annotations"] if not entry.get("was_cancelled")]
        pairs += [
            (photo, name) for entry in done for part in entry["result"] for name in _names(part)
        ]
    return collect(pairs, photos)


def _photo(data: dict[str, Any]) -> str:
    """The file of a task: uploaded, in local storage, in a bucket or at an address."""
    key = next((key for key in ("image", "img", "photo") if key in data), None)
    address = urlsplit(str(next(iter(data.values())) if key is None else data[key]))
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
