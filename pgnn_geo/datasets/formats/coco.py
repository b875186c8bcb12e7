"""COCO JSON: a photo has the categories of its annotations, whatever these are besides."""

from pgnn_geo.datasets.formats.base import TagFile, TagFormat, Tags, collect


def _fits(file: TagFile) -> bool:
    return isinstance(file.json, dict) and {"images", "annotations", "categories"} <= set(file.json)


def _read(file: TagFile) -> Tags:
    """Crowds, boxes and records without a segmentation count: a tag says that a class is there.

    Numbers are also matched where one of both places has them as text.
    """
    names = {str(entry["id"]): str(entry["name"]) for entry in file.json["categories"]}
    photos: dict[str, str] = {}
    for entry in file.json["images"]:
        number, photo = str(entry["id"]), str(entry["file_name"])
        if photos.setdefault(number, photo) != photo:
            raise ValueError(f"image id {number} is that of {photos[number]} and of {photo}")
    pairs = []
    for entry in file.json["annotations"]:
        number, category = str(entry["image_id"]), str(entry["category_id"])
        if number not in photos or category not in names:
            raise ValueError(
                f"annotation {entry.get('id')} has image_id {number}, category_id {category}; want "
                "ids that images and categories have"
            )
        pairs.append((photos[number], names[category]))
    return collect(pairs, list(photos.values()))


#: `COCO <https://cocodataset.org/#format-data>`_, also as CVAT, Roboflow and others export it.
COCO = TagFormat("coco", "COCO JSON", _fits, _read)
