"""PNGs whose grey values are ids, as Cityscapes and mmsegmentation have them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from pgnn_geo.io.exports.base import Export, Labelled


def _write(folder: Path, photos: Iterable[Labelled], classes: Sequence[str]) -> None:
    for photo in photos:
        path = folder / "gtFine" / "train" / f"{photo.image_id}_gtFine_labelTrainIds.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo.mask).save(path, compress_level=1)
    names = ["background", *classes]
    rows = "".join(f"{label} {name}\n" for label, name in enumerate(names))
    (folder / "labels.txt").write_text(rows + "255 ignored\n", encoding="utf-8")


#: 0 is the background, 255 is ignored, as in Cityscapes' training ids.
CITYSCAPES = Export("cityscapes", "id PNGs, as Cityscapes' training ids", _write)
