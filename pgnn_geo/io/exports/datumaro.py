"""Datumaro's JSON with a run-length mask for each photo and class."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgnn_geo.io.exports.base import Export, Labelled, labels_in


def _write(folder: Path, photos: Iterable[Labelled], classes: Sequence[str]) -> None:
    import pycocotools.mask

    items: list[dict[str, Any]] = []
    for photo in photos:
        masks, columns = [], np.asfortranarray(photo.mask)
        for number, label in enumerate(labels_in(photo.mask, len(classes))):
            rle = pycocotools.mask.encode((columns == label).view(np.uint8))
            masks.append(
                {
                    "id": number,
                    "type": "mask",
                    "attributes": {},
                    "group": 0,
                    "label_id": int(label) - 1,
                    "z_order": 0,
                    "rle": {"counts": rle["counts"].decode("ascii"), "size": list(rle["size"])},
                }
            )
        size = list(photo.mask.shape)
        image = {"path": photo.file_name, "size": size}
        items.append({"id": photo.image_id, "annotations": masks, "attr": {}, "image": image})
    labels = [{"name": name, "parent": "", "attributes": []} for name in classes]
    document = {
        "dm_format_version": "1.0",
        "media_type": 2,
        "infos": {},
        "categories": {"label": {"labels": labels, "attributes": []}},
        "items": items,
    }
    path = folder / "annotations" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document), encoding="utf-8")


#: What is not decided has no mask.
DATUMARO = Export("datumaro", "Datumaro JSON, RLE masks", _write, ("pycocotools",))
