"""PASCAL VOC's layout: palette PNGs, the list of ids, and the classes."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pgnn_geo.io.exports.base import Export, Labelled


def _write(folder: Path, photos: Iterable[Labelled], classes: Sequence[str]) -> None:
    ids = []
    for photo in photos:
        path = folder / "SegmentationClass" / f"{photo.image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo.label, path)
        ids.append(photo.image_id)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
    (folder / "classes.txt").write_text("".join(f"{n}\n" for n in classes), encoding="utf-8")


#: 255 is "do not count", as VOC has it.
VOC = Export("voc", "PASCAL VOC, palette PNG", _write)
