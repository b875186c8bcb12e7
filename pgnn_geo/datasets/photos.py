"""Photos without masks or classes of their own: files and folders, and tags for them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pgnn_geo.datasets.formats import read_tags
from pgnn_geo.datasets.labels import multi_hot
from pgnn_geo.datasets.listing import first_of, list_photos
from pgnn_geo.errors import InputError

StrPath = str | os.PathLike[str]


class Photo(NamedTuple):
    """A photo and its name."""

    photo_id: str  #: its path below the folder that all share, without the extension
    path: Path


def find_photos(
    paths: Sequence[StrPath], leave_out: Sequence[StrPath] = ()
) -> tuple[Path, list[Photo]]:
    """List photos: the files given, and all JPEG and PNG files below the folders given.

    Args:
        paths (sequence of str or PathLike): Files and folders.
        leave_out (sequence of str or PathLike): Folders whose files are no photos.
            (default: :obj:`()`)

    Returns:
        The folder that all paths share, and the photos in the order of their paths.

    Raises:
        InputError: If a path does not exist, there is no photo, or two differ in their extension
            only.
    """
    given = [Path(os.path.abspath(path)) for path in paths]
    if not given:
        raise InputError("Name one or more photos, or folders of photos.")
    if missing := [str(path) for path in given if not path.exists()]:
        raise InputError(f"There are no photos at {first_of(missing)}.")
    root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in given]))
    files: set[Path] = set()
    for path in given:
        files |= {path / name for name in list_photos(path)} if path.is_dir() else {path}
    hidden = [Path(folder).resolve() for folder in leave_out]
    photos: dict[str, Path] = {}
    for path in sorted(files):
        if hidden and any(folder in path.resolve().parents for folder in hidden):
            continue
        photo_id = path.relative_to(root).with_suffix("").as_posix()
        if photo_id in photos:
            raise InputError(
                f"{photos[photo_id]} and {path} would both be called {photo_id}; rename one."
            )
        photos[photo_id] = path
    if not photos:
        raise InputError(f"There are no JPEG or PNG files in {first_of(map(str, given))}.")
    return root, [Photo(*pair) for pair in photos.items()]


def read_photo_tags(
    csv: StrPath, root: Path, photos: Sequence[Photo], classes: Sequence[str]
) -> Tensor:
    """Return the multi-hot tags :obj:`[M, K]` of photos out of a CSV ``image,labels``.

    Args:
        csv (str or PathLike): The file. Its rows name photos as those of
            :class:`~pgnn_geo.datasets.TaggedFolder` do; there may be more of them.
        root (Path): The folder that the photos share.
        photos (sequence of Photo): :math:`M` photos.
        classes (sequence of str): Names of :math:`K` classes.

    Raises:
        InputError: If the CSV cannot be read, lacks a photo or names an unknown class.
    """
    names = [photo.path.relative_to(root).as_posix() for photo in photos]
    tags = read_tags(csv, root, dict.fromkeys(names)).tags
    return multi_hot(tags, names, classes, f"'{csv}'")
