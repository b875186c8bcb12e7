"""PNGs whose grey values are ids, as Cityscapes and mmsegmentation have them."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from pgnn_geo.errors import note
from pgnn_geo.io.exports.base import Export, Labelled

_ENDING = "_gtFine_labelTrainIds.png"
_LONGEST = 255  # bytes of a file's name, of usual file systems


def _write(folder: Path, photos: Iterable[Labelled], classes: Sequence[str]) -> None:
    long = []
    for photo in photos:
        path = folder / "gtFine" / "train" / f"{photo.image_id}{_ENDING}"
        if len(os.fsencode(path.name)) > _LONGEST:
            long.append(photo.image_id)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo.mask).save(path, compress_level=1)
    if long:
        note(
            f"export cityscapes leaves out photos whose names have more than {_LONGEST} bytes with "
            f"'{_ENDING}', such as '{long[0][:40]}...' ({len(long)} in all); rename them"
        )
    names = ["background", *classes]
    rows = "".join(f"{label} {name}\n" for label, name in enumerate(names))
    (folder / "labels.txt").write_text(rows + "255 ignored\n", encoding="utf-8")


#: 0 is the background, 255 is ignored, as in Cityscapes' training ids.
CITYSCAPES = Export("cityscapes", "id PNGs, as Cityscapes' training ids", _write)
