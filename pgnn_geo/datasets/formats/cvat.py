"""CVAT's XML for images: a photo has the labels of its tags and shapes."""

from pgnn_geo.datasets.formats.base import TagFile, TagFormat, Tags, collect


def _fits(file: TagFile) -> bool:
    return file.xml is not None and file.xml.tag == "annotations"


def _read(file: TagFile) -> Tags:
    assert file.xml is not None
    images = {entry.attrib["name"]: entry for entry in file.xml.iter("image")}
    if not images:
        raise ValueError("no image; export 'CVAT for images', not for video")
    shapes = [(name, shape) for name, entry in images.items() for shape in entry]
    pairs = [(name, shape.attrib["label"]) for name, shape in shapes if "label" in shape.attrib]
    return collect(pairs, list(images))


#: `CVAT for images 1.1 <https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/>`_.
CVAT = TagFormat("cvat", "CVAT XML for images", _fits, _read)
