"""Photos with boxes that people drew, from a COCO file: what box adjusters are learned from."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from pgnn_geo.boxes.image_boxes import ImageBoxes, box_problems, raise_for_rows
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.listing import match_photos
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import parse_json


class AuxiliaryBoxes(TaggedDataset):
    r"""Photos and their drawn boxes out of a COCO file of annotations; classes do not matter.

    Crowd regions are left out, as are boxes less than a pixel wide or high, of which COCO's own
    files have some, and photos without a box. Photos are taken as stored, whatever
    their EXIF orientation: COCO's boxes were drawn that way.

    Args:
        annotations (str or PathLike): JSON with :obj:`images` (:obj:`id`, :obj:`file_name`,
            :obj:`width`, :obj:`height`) and :obj:`annotations` (:obj:`image_id`, :obj:`bbox` as
            x, y, width, height).
        photos (str or PathLike): Folder of the photos; :obj:`file_name` is a path below it.

    Raises:
        InputError: If the file cannot be read, boxes in it cannot be used (the first offenders
            and their count), there is none, or a photo would lie outside the folder.
    """

    def __init__(self, annotations: str | os.PathLike[str], photos: str | os.PathLike[str]) -> None:
        self.name = Path(annotations).stem
        images, rows = _read(Path(annotations))
        sizes = {key: (entry["height"], entry["width"]) for key, entry in images.items()}
        try:
            xywh = torch.tensor([row["bbox"] for row in rows], dtype=torch.float)
            xywh = xywh.view(len(rows), 4)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"'{annotations}': 'bbox' must be four numbers: {error}") from error
        thin = ((xywh[:, 2:] >= 0) & (xywh[:, 2:] < 1)).any(1)
        rows = [row for row, left_out in zip(rows, thin.tolist(), strict=True) if not left_out]
        xywh, ids = xywh[~thin], [str(row["image_id"]) for row in rows]
        boxes = ImageBoxes(
            torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1),
            torch.ones(len(rows), dtype=torch.long),
            torch.ones(len(rows)),
        )
        raise_for_rows(
            box_problems(boxes, ids, sizes, num_classes=1),
            lambda row: f"annotation {rows[row].get('id')} of image {ids[row]}",
            len(rows),
            f"'{annotations}'",
        )
        by_image: dict[str, list[Tensor]] = {}
        for key, box in zip(ids, boxes.boxes, strict=True):
            by_image.setdefault(key, []).append(box)
        if not by_image:
            raise InputError(f"'{annotations}' has no boxes")
        self.boxes = [
            clip_boxes_to_image(torch.stack(own), sizes[key]) for key, own in by_image.items()
        ]
        names = [images[key]["file_name"] for key in by_image]
        paths = [Path(photos, name) for name in match_photos(names, (), annotations)]
        super().__init__(list(by_image), paths, classes=(), tags=None)


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Images by their id, and annotations that are no crowds."""
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        images = {
            str(entry["id"]): {
                "file_name": str(entry["file_name"]),
                "width": int(entry["width"]),
                "height": int(entry["height"]),
            }
            for entry in document["images"]
        }
        rows = [row for row in document["annotations"] if not row.get("iscrowd", 0)]
        if missing := [row for row in rows if not {"image_id", "bbox"} <= row.keys()]:
            raise InputError(
                f"'{path}': {len(missing)} annotations lack 'image_id' or 'bbox', such as "
                f"{missing[0].get('id')}"
            )
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{path}' is no COCO file of annotations: {error!r}") from error
    return images, rows
