"""Label images in the formats of other tools: COCO JSON and the VOC evaluation server."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write, inside, mark_results
from pgnn_geo.io.masks import IGNORE, MAX_PIXELS, VOC_CLASSES, save_mask

LabelImages = Iterable[tuple[str, Tensor | ArrayLike]]

#: Where the VOC evaluation server looks for masks of its segmentation test with outside data.
VOC_SUBMISSION = Path("results", "VOC2012", "Segmentation", "comp6_test_cls")


def write_coco(
    path: str | os.PathLike[str], masks: LabelImages, classes: Sequence[str], suffix: str = ".jpg"
) -> None:
    """Write label images as COCO JSON, atomically: one RLE annotation per image and class.

    Categories are numbered 1..K as the labels are. Ignored pixels become an annotation of the
    category :obj:`"ignore"` (255) with :obj:`iscrowd` set, as COCO marks what is not scored.

    Args:
        path (str or PathLike): The JSON file.
        masks (iterable): Pairs of image id and label image :math:`(H, W)`, read one at a time.
        classes (sequence of str): Foreground names.
        suffix (str): Ending of the photographs' file names. (default: :obj:`".jpg"`)

    Raises:
        InputError: If a label is beyond the classes, an image id comes twice, or
            :obj:`pycocotools` is missing.
    """
    mask_api = _pycocotools().mask
    images: dict[str, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for image_id, mask in masks:
        array = check_labels(mask, image_id, len(classes))
        if image_id in images:
            raise InputError(f"image id '{image_id}' comes twice")
        number = len(images) + 1
        height, width = array.shape
        name = f"{image_id}{suffix}"
        images[image_id] = {"id": number, "file_name": name, "width": width, "height": height}
        columns = np.asfortranarray(array)  # once for all labels, as the library wants it
        for label in filter(None, np.bincount(array.ravel()).nonzero()[0].tolist()):
            region = mask_api.encode((columns == label).view(np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "segmentation": {
                        "size": [height, width],
                        "counts": region["counts"].decode("ascii"),
                    },
                    "bbox": mask_api.toBbox(region).tolist(),
                    "area": int(mask_api.area(region)),
                    "iscrowd": int(label == IGNORE),
                }
            )
    names = dict(enumerate(classes, start=1))
    if any(annotation["iscrowd"] for annotation in annotations):
        names[IGNORE] = "ignore"
    document = {
        "info": {},
        "licenses": [],
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in names.items()],
    }
    with atomic_write(path) as handle:
        handle.write(json.dumps(document).encode())


def read_coco(path: str | os.PathLike[str], classes: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Read COCO JSON as label images: RLE or polygons, from here or from another tool.

    Categories are matched by name; crowd regions become 255. Where annotations overlap, the
    smaller one is on top.

    Args:
        path (str or PathLike): The JSON file.
        classes (sequence of str): Foreground names; label 1 is the first.

    Yields:
        The image id (the file name without folder and ending) and a uint8 tensor :math:`(H, W)`.

    Raises:
        InputError: If the file is not COCO JSON, names a category that is not one of
            :obj:`classes`, or :obj:`pycocotools` is missing.
    """
    api = _pycocotools()
    try:
        with redirect_stdout(io.StringIO()):  # it reports its progress by print
            coco = api.coco.COCO(os.fspath(path))
        categories = {entry["id"]: entry["name"] for entry in coco.dataset["categories"]}
        images = {
            entry["id"]: (str(entry["file_name"]), int(entry["height"]), int(entry["width"]))
            for entry in coco.dataset["images"]
        }
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(
            f"'{path}' cannot be read as COCO JSON: {error!r}; want images with id, file_name, "
            "height and width, categories with id and name, annotations with id, image_id and "
            "category_id"
        ) from error
    labels = {name: label for label, name in enumerate(classes, start=1)}
    for number, (name, height, width) in images.items():
        if min(height, width) < 1 or height * width > MAX_PIXELS:
            raise InputError(
                f"image {number} of '{path}' is said to have {width} x {height} pixels; want 1 to "
                f"{MAX_PIXELS}"
            )
        regions = [
            (_region(coco, entry, path), _coco_label(entry, categories, labels, path))
            for entry in coco.imgToAnns[number]
        ]
        mask = np.zeros((height, width), dtype=np.uint8)
        for region, label in sorted(regions, key=lambda pair: -int(pair[0].sum())):
            mask[region] = label
        yield Path(name).stem, torch.from_numpy(mask)


def _coco_label(
    entry: Mapping[str, Any],
    categories: Mapping[int, str],
    labels: Mapping[str, int],
    path: str | os.PathLike[str],
) -> int:
    if entry.get("iscrowd", 0):
        return IGNORE
    name = str(categories.get(entry.get("category_id", -1)))
    if name not in labels:
        raise InputError(
            f"annotation {entry.get('id')} of '{path}' has category {name!r}; want one of "
            f"{list(labels)}"
        )
    return labels[name]


def _region(coco: Any, entry: Mapping[str, Any], path: str | os.PathLike[str]) -> NDArray[np.bool_]:
    """The pixels of an annotation :math:`(H, W)`; its area, which tools leave out, is theirs."""
    if not entry.get("segmentation"):
        raise InputError(
            f"annotation {entry.get('id')} of '{path}' has no segmentation, at most a box, which "
            "tells no pixels; export masks or polygons, or use the file for tags"
        )
    try:
        image, segmentation = coco.imgs[entry["image_id"]], entry["segmentation"]
        if isinstance(segmentation, dict):  # of whose size the library makes the mask
            size = [image["height"], image["width"]]
            if list(segmentation["size"]) != size:
                raise ValueError(f"its size is {segmentation['size']}, its image's {size}")
        return np.asarray(coco.annToMask(entry)) > 0
    except Exception as error:  # of a library in C, which checks nothing before
        raise InputError(
            f"annotation {entry.get('id')} of '{path}' has a segmentation that is neither polygons "
            f"nor RLE of its image: {error!r}"
        ) from error


def write_voc_submission(
    root: str | os.PathLike[str], masks: LabelImages, classes: Sequence[str] = VOC_CLASSES
) -> Path:
    """Write predictions as the VOC evaluation server wants them, one palette PNG per image.

    Args:
        root (str or PathLike): The folder that gets :obj:`results/VOC2012/...`.
        masks (iterable): Pairs of image id and label image :math:`(H, W)`, read one at a time.
        classes (sequence of str): Names of the labels 1..K; they are written with VOC's own
            numbers. (default: all 20)

    Returns:
        The folder of the PNG files; pack :obj:`results` to submit.

    Raises:
        InputError: If a class is not one of VOC's, or a mask holds 255, which a prediction must
            not.
    """
    unknown = [name for name in classes if name not in VOC_CLASSES]
    if unknown:
        raise InputError(f"not VOC classes: {unknown}; VOC's are {list(VOC_CLASSES)}")
    numbers = np.array([0, *(VOC_CLASSES.index(name) + 1 for name in classes)], dtype=np.uint8)
    folder = Path(root) / VOC_SUBMISSION
    for image_id, mask in masks:
        array = check_labels(mask, image_id, len(classes))
        if (array == IGNORE).any():
            raise InputError(f"mask of image '{image_id}' holds 255; the VOC server takes 0..20")
        save_mask(inside(folder, f"{image_id}.png"), numbers[array])
        mark_results(Path(root) / VOC_SUBMISSION.parts[0])
    return folder


def check_labels(mask: Tensor | ArrayLike, image_id: str, num_classes: int) -> NDArray[Any]:
    """A label image :math:`(H, W)` as an array.

    Raises:
        InputError: If it is none, or holds other labels than 0..K and 255.
    """
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise InputError(
            f"mask of image '{image_id}' must be integers [H, W], got {array.dtype} "
            f"{list(array.shape)}"
        )
    bad = array[((array < 0) | (array > num_classes)) & (array != IGNORE)]
    if bad.size:
        raise InputError(
            f"mask of image '{image_id}' holds label {int(bad[0])}; want 0..{num_classes} or "
            f"{IGNORE}"
        )
    return array


def _pycocotools() -> Any:
    if find_spec("pycocotools") is None:
        raise InputError("COCO JSON needs pycocotools: pip install 'pgnn-geo[export]'")
    import pycocotools.coco
    import pycocotools.mask

    return pycocotools
