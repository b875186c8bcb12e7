"""A file of annotations beside each photo, as labelme and labelImg write them."""

import os
from collections.abc import Iterable
from pathlib import Path

from pgnn_geo.datasets.formats.base import TagFile, Tags
from pgnn_geo.datasets.labels import read_tag_xml
from pgnn_geo.datasets.listing import first_of
from pgnn_geo.errors import InputError


def has_files_beside(root: Path, photos: Iterable[str]) -> bool:
    """Whether a photo has a file of annotations beside it.

    Raises:
        InputError: If there are YOLO's text files, which name no classes.
    """
    stems = [root / os.path.splitext(photo)[0] for photo in photos]
    if any(Path(f"{stem}{ending}").is_file() for stem in stems for ending in (".json", ".xml")):
        return True
    if text := next((p for stem in stems if (p := Path(f"{stem}.txt")).is_file()), None):
        raise InputError(
            f"'{text}' may be of YOLO, where classes are numbers; export COCO JSON from the tool "
            "that wrote it, or name a file of tags by --tags"
        )
    return False


def read_files_beside(root: Path, photos: Iterable[str]) -> Tags:
    """Tags by the labels of shapes and the flags in ``photo.json``, or objects in ``photo.xml``.

    A photo without such a file has no tags.

    Args:
        root (Path): The folder.
        photos (iterable of str): Paths below it.

    Raises:
        InputError: If a file cannot be read, is built otherwise, or no photo has one.
    """
    photos = list(photos)
    stems = {photo: os.path.splitext(photo)[0] for photo in photos}
    objects = read_tag_xml(root, list(stems.values()))
    found, wrong, there = Tags(), [], len(objects)
    for photo, stem in stems.items():
        path = root / f"{stem}.json"
        labels = list(objects.get(stem, ()))
        if path.is_file():
            there += 1
            try:
                labels += _labels(TagFile(path).json)
            except (AttributeError, KeyError, TypeError):
                wrong.append(str(path))
        found[photo] = tuple(labels)
    if wrong:
        raise InputError(
            f"files beside photos that are not labelme's: {first_of(wrong)}; want 'shapes' with a "
            "'label' each"
        )
    if not there:
        raise InputError(
            f"no photo in '{root}' has a file of its name beside it: want .json (labelme) or .xml "
            "(labelImg)"
        )
    return found


def _labels(document: dict[str, object]) -> list[str]:
    """The labels of a file of labelme's; its flags are those of the whole photo."""
    shapes, flags = document["shapes"], document.get("flags") or {}
    assert isinstance(flags, dict)
    names = [str(shape["label"]) for shape in shapes]  # type: ignore[attr-defined]
    return names + [str(name) for name, is_set in flags.items() if is_set]
