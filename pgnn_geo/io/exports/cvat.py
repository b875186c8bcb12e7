"""CVAT's "Segmentation Mask 1.1": one archive to upload."""

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgnn_geo.io.exports.base import Export, Labelled, labels_in
from pgnn_geo.io.masks import IGNORE, voc_palette


def _write(folder: Path, photos: Iterable[Labelled], classes: Sequence[str]) -> None:
    colors = voc_palette()
    palette = colors.tobytes()
    names = ["background", *classes]
    rows = [f"{name}:{','.join(map(str, c))}::" for name, c in zip(names, colors, strict=False)]
    ids = []
    with zipfile.ZipFile(folder / "segmentation_mask.zip", "w") as archive:
        for photo in photos:
            labels = np.where(photo.mask == IGNORE, 0, photo.mask)
            objects = np.zeros_like(labels)  # one of each class, numbered in each photo
            for number, label in enumerate(labels_in(labels, len(classes)), start=1):
                objects[labels == label] = number
            for place, content in (("Class", labels), ("Object", objects)):
                name = f"Segmentation{place}/{photo.image_id}.png"
                archive.writestr(name, _png(content, palette))
            ids.append(photo.image_id)
        head = "# label:color_rgb:parts:actions"
        archive.writestr("labelmap.txt", "".join(f"{row}\n" for row in [head, *rows]))
        archive.writestr("ImageSets/Segmentation/default.txt", "".join(f"{i}\n" for i in ids))


def _png(labels: NDArray[np.uint8], palette: bytes) -> bytes:
    content, image = io.BytesIO(), Image.fromarray(labels)
    image.putpalette(palette)
    image.save(content, format="PNG", compress_level=1)
    return content.getvalue()


#: The background is a label of its own there; what is not decided becomes background.
CVAT = Export("cvat", "CVAT Segmentation Mask 1.1", _write)
