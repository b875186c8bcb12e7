"""COCO JSON with a run-length mask for each photo and class."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pgnn_geo.io.export import write_coco
from pgnn_geo.io.exports.base import Export, Labelled


def _write(folder: Path, photos: Iterable[Labelled], classes: Sequence[str]) -> None:
    masks = ((photo.file_name, photo.mask) for photo in photos)
    write_coco(folder / "annotations.json", masks, classes, suffix="")


#: :func:`~pgnn_geo.labels.write_coco`: what is not decided is a crowd.
COCO = Export("coco", "COCO JSON, RLE masks", _write, ("pycocotools",))
