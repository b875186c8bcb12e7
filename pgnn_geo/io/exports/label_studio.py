"""Label Studio's predictions with brush masks."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgnn_geo.io.exports.base import Export, Labelled, labels_in

_SIZES = (4, 8, 12, 16)  # bits of the lengths of runs


def _write(folder: Path, photos: Iterable[Labelled], classes: Sequence[str]) -> None:
    with (folder / "tasks.json").open("w", encoding="utf-8") as handle:
        handle.write("[")  # one task at a time: a brush is a number for each of its bytes
        for number, task in enumerate(_tasks(photos, classes)):
            handle.write((", " if number else "") + json.dumps(task))
        handle.write("]")
    labels = "".join(f'    <Label value="{_escaped(name)}"/>\n' for name in classes)
    (folder / "labeling_config.xml").write_text(
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n</View>\n',
        encoding="utf-8",
    )


def _tasks(photos: Iterable[Labelled], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
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
        yield {"data": {"image": photo.file_name}, "predictions": predictions}


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
    longest = 2 ** max(_SIZES)
    pieces = -(-lengths // longest)  # of a run that no length can say
    run = np.repeat(np.arange(lengths.size), pieces)
    number = np.arange(run.size) - (np.cumsum(pieces) - pieces)[run]
    part = np.minimum(lengths[run] - number * longest, longest)
    which = np.searchsorted(2 ** np.array(_SIZES), part)  # the first size that is enough
    size = np.array(_SIZES)[which]
    code = ((4 + which) << size | part - 1) << 8 | np.where(flat[starts[run]], 255, 0)
    head = [(4 * flat.size, 32), (7, 5), *((size - 1, 4) for size in _SIZES)]
    codes = np.concatenate([[value for value, _ in head], code])
    bits = np.concatenate([[width for _, width in head], size + 11])
    # The last bits of each row of 32 are the code.
    rows = np.unpackbits(codes.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    packed: list[int] = np.packbits(rows[np.arange(32) >= 32 - bits[:, None]]).tolist()
    return packed


def _escaped(name: str) -> str:
    return name.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


#: What is not decided has no brush. The second file is the labelling setup of the project.
LABEL_STUDIO = Export("label_studio", "Label Studio predictions, brush RLE", _write)
