"""Datumaro's JSON: a photo has the labels of its annotations, whatever these are besides."""

from pgnn_geo.datasets.formats.base import TagFile, TagFormat, Tags, collect


def _fits(file: TagFile) -> bool:
    return isinstance(file.json, dict) and {"items", "categories"} <= set(file.json)


def _read(file: TagFile) -> Tags:
    labels = [str(entry["name"]) for entry in file.json["categories"]["label"]["labels"]]
    pairs, photos = [], []
    for item in file.json["items"]:
        photo = str((item.get("image") or {}).get("path") or item["id"])
        photos.append(photo)
        numbers = (entry.get("label_id") for entry in item["annotations"])
        pairs += [(photo, labels[number]) for number in numbers if number is not None]
    return collect(pairs, photos)


#: `Datumaro <https://open-edge-platform.github.io/datumaro/>`_, also as CVAT exports it.
DATUMARO = TagFormat("datumaro", "Datumaro JSON", _fits, _read)
