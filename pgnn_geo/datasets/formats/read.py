"""The tags of a folder of photos, whatever they are written in."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pgnn_geo.datasets.formats.base import TagFile, TagFormat, Tags
from pgnn_geo.datasets.formats.beside import has_files_beside, read_files_beside
from pgnn_geo.datasets.formats.folders import read_class_folders
from pgnn_geo.datasets.formats.imagenet import is_list
from pgnn_geo.datasets.formats.registry import FORMATS
from pgnn_geo.datasets.hugging_face import is_hugging_face
from pgnn_geo.datasets.listing import list_photos, match_rows
from pgnn_geo.datasets.tags import clean_tags
from pgnn_geo.errors import InputError, note

#: In place of a file of tags: photos lie in a folder for each class.
FOLDERS = "folders"

#: In place of a file of tags: each photo has one of its name beside it.
BESIDE = "beside"

_DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError)
_SUFFIXES = (".csv", ".tsv", ".json", ".xml")


class PhotoTags(NamedTuple):
    """Tags of the photos of a folder."""

    tags: Tags  #: by the photo's path, or what a row calls one that is not there
    source: str  #: the format's name
    copies: set[str]  #: photos that are others once more


def read_tags(source: str | os.PathLike[str], root: Path, photos: Mapping[str, None]) -> PhotoTags:
    """Read the tags of photos from a file of any format, or from the names of their folders.

    Args:
        source (str or PathLike): The file, :obj:`"folders"` or :obj:`"beside"`.
        root (Path): The folder of the photos.
        photos (mapping): Their paths below it.

    Raises:
        InputError: If the file is of no known format, is damaged, or has several rows of a photo.
    """
    if str(source) == FOLDERS:
        tags, copies = read_class_folders(root, photos)
        return PhotoTags(clean_tags(tags, f"folders of '{root}'"), FOLDERS, copies)
    if str(source) == BESIDE:
        return PhotoTags(clean_tags(read_files_beside(root, photos), f"'{root}'"), BESIDE, set())
    file = TagFile(Path(source))
    kind = _format_of(file)
    try:
        rows = kind.read(file)
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(
            f"'{source}' is damaged, read as {kind.title}: {_said(error)}; export it again, or "
            "name another file of tags"
        ) from error
    if kind.name != "csv":
        rows = clean_tags(rows, f"'{source}'")
    return PhotoTags(match_rows(rows, photos, source, kind.exact), kind.name, set())


def recognise(root: Path) -> tuple[str, str]:
    """Find what a folder is: :obj:`("voc", "auto")`, or :obj:`("folder", tags)`, and say it.

    Args:
        root (Path): The folder.

    Raises:
        InputError: If it is nothing that is known, or holds several files of tags.
    """
    for voc in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (voc / "JPEGImages").is_dir() and (voc / "ImageSets" / "Segmentation").is_dir():
            note(f"'{root}' is read as VOC layout (--data voc)")
            return "voc", "auto"
    if root.is_file() and is_packed(root):
        raise _packed(root)
    if not root.is_dir():
        raise InputError(f"root '{root}' is not a folder")
    files = [root / "labels.csv"]
    if not files[0].is_file():
        places = [root, root / "annotations"]
        files = [p for place in places if place.is_dir() for p in sorted(place.iterdir())]
        files = [p for p in files if is_list(p) or _is_tagged(p)]
    if len(files) > 1:
        names = ", ".join(f"'{path}'" for path in files)
        raise InputError(f"'{root}' holds several files of tags: {names}; name one by --tags")
    if files:
        title = _format_of(TagFile(files[0])).title
        note(f"tags are read from '{files[0]}', {title} (--data folder --tags {files[0]})")
        return "folder", str(files[0])
    photos = list_photos(root)
    if has_files_beside(root, photos):
        note(f"tags are read from a file beside each photo (--data folder --tags {BESIDE})")
        return "folder", BESIDE
    classes = {photo.split("/", 1)[0] for photo in photos}
    if len(classes) > 1 and all("/" in photo for photo in photos):
        note(f"tags are the names of {len(classes)} folders (--data folder --tags {FOLDERS})")
        return "folder", FOLDERS
    if is_packed(root):
        raise _packed(root)
    raise InputError(
        f"'{root}' is neither VOC layout nor a folder for each class, has no files of labelme or "
        f"labelImg beside photos, and holds no file of tags that is known ({_titles()}); name one "
        "by --tags"
    )


def is_packed(root: Path) -> bool:
    """Whether this is a Hugging Face data set, whose photos are no files."""
    return is_hugging_face(root) and (root.is_file() or not list_photos(root))


def _said(error: Exception) -> str:
    """What is wrong with a file, in words."""
    if isinstance(error, KeyError):
        return f"a record has no {error.args[0]!r}"
    if isinstance(error, IndexError):
        return "a record has the number of a class that is not listed"
    return str(error) if type(error) is ValueError else f"it is built otherwise ({error})"


def _packed(root: Path) -> InputError:
    return InputError(
        f"'{root}' is a Hugging Face data set, whose photos are no files. 'pgnn-geo run' writes "
        "them into its folder; for all else write them by 'pgnn-geo unpack --source "
        f"{shlex.quote(str(root))} --out photos', then name --root photos"
    )


def _is_tagged(path: Path) -> bool:
    if path.suffix.lower() not in _SUFFIXES or path.name.startswith("."):
        return False
    try:
        _format_of(TagFile(path))
    except InputError:
        return False
    return True


def _format_of(file: TagFile) -> TagFormat:
    file.text  # noqa: B018  # a file that cannot be read is said first
    for kind in FORMATS:
        if kind.fits(file):
            return kind
    if file.path.suffix.lower() not in (".json", ".xml"):
        return FORMATS[-1]  # whose reader says what is wrong with a table
    raise InputError(f"'{file.path}' holds tags in no known format: want one of {_titles()}")


def _titles() -> str:
    return ", ".join(kind.title for kind in FORMATS)
