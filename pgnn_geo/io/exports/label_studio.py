"""Label Studio's predictions with brush masks."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgnn_geo.io.exports.base import Export, Labelled, labels_in

_SIZES = (4, 8, 12, 16)  # bits of the lengths of runs


def _write(folder: Path, photos: Iterable[Labelled], classes: Sequence[str]) -> None:
    tasks: list[dict[str, Any]] = []
    for photo in photos:
        height, width = photo.mask.shape
        result = [
            {
                "id": f"label{label}",
                "type": "brushlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "format": "rle",
                    "rle": encode_brush(photo.mask == label),
                    "brushlabels": [classes[label - 1]],
                },
            }
            for label in labels_in(photo.mask, len(classes))
        ]
        predictions = [{"model_version": "pgnn_geo", "result": result}]
        tasks.append({"data": {"image": photo.file_name}, "predictions": predictions})
    (folder / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    labels = "".join(f'    <Label value="{_escaped(name)}"/>\n' for name in classes)
    (folder / "labeling_config.xml").write_text(
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n</View>\n',
        encoding="utf-8",
    )


def encode_brush(region: NDArray[np.bool_]) -> list[int]:
    r"""Pack a region as Label Studio's brush does: `rle-pack
    <https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack>`_ of RGBA bytes.

    Bits: the number of values (32), the bits of a value less one (5), the four sizes of lengths
    less one (4 each); then for each run of equal values a 1, which size its length has (2), its
    length less one, and the value (8).

    Args:
        region (array): Booleans of shape :math:`(H, W)`.

    Returns:
        Bytes, the last one filled up with zeros.
    """
    flat = region.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], edges])
    lengths = 4 * np.diff(np.concatenate([starts, [flat.size]]))  # a pixel has four bytes
    bits = [f"{4 * flat.size:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "11111111" if flat[start] else "00000000"
        while length:
            part = min(length, 2 ** _SIZES[-1])
            which = next(k for k, size in enumerate(_SIZES) if part <= 2**size)
            bits.append(f"1{which:02b}{part - 1:0{_SIZES[which]}b}{value}")
            length -= part
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))


def _escaped(name: str) -> str:
    return name.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


#: What is not decided has no brush. The second file is the labelling setup of the project.
LABEL_STUDIO = Export("label_studio", "Label Studio predictions, brush RLE", _write)
