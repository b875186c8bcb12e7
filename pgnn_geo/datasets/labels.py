"""Class lists, tags from annotations and masks, and tags as numbers."""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

from pgnn_geo.datasets.listing import first_of, same_form
from pgnn_geo.datasets.tag_csv import read_text
from pgnn_geo.datasets.tags import clean_tags, is_background, note_similar
from pgnn_geo.errors import InputError, note
from pgnn_geo.io.masks import IGNORE, load_mask


def select_classes(
    classes: Sequence[str] | str | None, catalogue: Sequence[str]
) -> tuple[str, ...]:
    """Check a choice of classes against all class names of a data set.

    Args:
        classes (sequence of str or str, optional): Names in the order of the new labels
            :math:`1..K`, or one string with commas. All of :obj:`catalogue` if :obj:`None`.
        catalogue (sequence of str): All class names, in the order of their labels.

    Raises:
        InputError: If a name is unknown or given twice, or none is given.
    """
    if classes is None:
        return tuple(catalogue)
    names = classes.split(",") if isinstance(classes, str) else list(classes)
    names = [same_form(name.strip()) for name in names]
    if unknown := [repr(name) for name in names if name not in catalogue]:
        raise InputError(f"classes: unknown {first_of(unknown)}; valid: {', '.join(catalogue)}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"classes: given more than once: {first_of(twice)}")
    if not names:
        raise InputError("classes: empty; want at least one name, or None for all")
    return tuple(names)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read a list of classes: one name a line, that of label 1 first; names may hold spaces.

    A first line ``background``, as other tools have it for label 0, is left out.

    Raises:
        InputError: If the file cannot be read, is empty, or names a class twice.
    """
    names = [same_form(line.strip()) for line in read_text(path).splitlines() if line.strip()]
    if names and is_background(names[0]):
        note(f"'{path}': {names[0]!r} is label 0; label 1 is the next")
        del names[0]
    if not names:
        raise InputError(f"'{path}' names no class; want one name a line")
    if len(names) == 1 and re.search(r"[,;|\t]", names[0]):
        raise InputError(f"'{path}' has a single line, {names[0]!r}; want one name a line")
    if wrong := next((name for name in names if is_background(name)), None):
        raise InputError(
            f"'{path}': {wrong!r} is not the first line, but label 0 is the background; put it "
            "first, or leave it out"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"'{path}': classes given more than once: {first_of(twice)}")
    note_similar(names, f"'{path}'")
    return tuple(names)


def read_tag_xml(folder: Path, image_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read tags from VOC annotations: the names of the objects in :obj:`folder/ID.xml`.

    Objects marked *difficult* count: VOC's segmentation masks contain them, so leaving their tag
    out would declare their pixels background. Names of object *parts* (head, hand) do not.

    Args:
        folder (Path): The :obj:`Annotations` folder.
        image_ids (sequence of str): Images to read; those without a file are left out.

    Raises:
        InputError: If a file is not XML.
    """
    tags = {}
    for image_id in image_ids:
        path = folder / f"{image_id}.xml"
        try:
            root = ElementTree.parse(path).getroot()
        except FileNotFoundError:
            continue
        except (OSError, ElementTree.ParseError) as error:
            raise InputError(f"'{path}' cannot be read as a VOC annotation: {error}") from error
        tags[image_id] = tuple((obj.findtext("name") or "").strip() for obj in root.iter("object"))
    return clean_tags(tags, f"'{folder}'")


def read_tag_masks(
    masks: Mapping[str, Path], catalogue: Sequence[str], max_pixels: int | None = None
) -> dict[str, tuple[str, ...]]:
    """Read tags from label images: a class is tagged if it has a pixel.

    Args:
        masks (mapping): Mask file of each image id; those without a file are left out.
        catalogue (sequence of str): All class names, in the order of their labels.
        max_pixels (int, optional): See :func:`~pgnn_geo.io.masks.load_mask`.

    Raises:
        InputError: If a mask cannot be read or has a label outside the catalogue.
    """

    def read(path: Path) -> tuple[str, ...]:
        labels = torch.bincount(load_mask(path, max_pixels).flatten()).nonzero().flatten().tolist()
        if wrong := [str(v) for v in labels if len(catalogue) < v != IGNORE]:
            raise InputError(
                f"mask '{path}' has labels {first_of(wrong)}, want 0..{len(catalogue)} or {IGNORE}"
            )
        return tuple(catalogue[v - 1] for v in labels if 0 < v != IGNORE)

    present = {image_id: path for image_id, path in masks.items() if path.is_file()}
    with ThreadPoolExecutor() as pool:
        return dict(zip(present, pool.map(read, present.values()), strict=True))


def multi_hot(
    tags: Mapping[str, Sequence[str]],
    image_ids: Sequence[str],
    catalogue: Sequence[str],
    source: str,
) -> Tensor:
    """Turn the tags of a split into a float tensor of shape :math:`(M, K)`.

    Args:
        tags (mapping): Class names of each image id.
        image_ids (sequence of str): The split; :obj:`tags` must cover it, and may hold more.
        catalogue (sequence of str): All class names, in the order of their labels.
        source (str): Where the tags were read, for error messages.

    Raises:
        InputError: If an image of the split has no entry, or a class name is unknown.
    """
    if missing := [image_id for image_id in image_ids if image_id not in tags]:
        raise InputError(f"{source}: no tags for images of the split: {first_of(missing)}")
    column = {name: k for k, name in enumerate(catalogue)}
    known = [(m, column.get(n), n) for m, i in enumerate(image_ids) for n in tags[i]]
    if unknown := [f"{n!r} at image {image_ids[m]}" for m, k, n in known if k is None]:
        raise InputError(
            f"{source}: unknown class {first_of(unknown)}; valid: {', '.join(catalogue)}"
        )
    hot = torch.zeros(len(image_ids), len(catalogue))
    for m, k, _ in known:
        hot[m, k] = 1.0
    return hot
