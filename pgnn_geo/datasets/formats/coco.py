"""COCO JSON: a photo has the categories of its annotations, whatever these are besides."""

from pgnn_geo.datasets.formats.base import TagFile, TagFormat, Tags, collect


def _fits(file: TagFile) -> bool:
    return isinstance(file.json, dict) and {"images", "annotations", "categories"} <= set(file.json)


def _read(file: TagFile) -> Tags:
    """Crowds, boxes and records without a segmentation count: a tag says that a class is there."""
    names = {entry["id"]: str(entry["name"]) for entry in file.json["categories"]}
    photos = {entry["id"]: str(entry["file_name"]) for entry in file.json["images"]}
    records = file.json["annotations"]
    pairs = [(photos[entry["image_id"]], names[entry["category_id"]]) for entry in records]
    return collect(pairs, list(photos.values()))


#: `COCO <https://cocodataset.org/#format-data>`_, also as CVAT, Roboflow and others export it.
COCO = TagFormat("coco", "COCO JSON", _fits, _read)
