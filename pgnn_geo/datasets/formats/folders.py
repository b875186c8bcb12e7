"""A folder of folders, one per class, as torchvision's ImageFolder has it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import torch
from torch.nn.functional import adaptive_avg_pool2d

from pgnn_geo.datasets.formats.base import Tags
from pgnn_geo.datasets.listing import first_of
from pgnn_geo.datasets.photo_file import load_photo
from pgnn_geo.errors import InputError, note

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def read_class_folders(root: Path, photos: Iterable[str]) -> tuple[Tags, set[str]]:
    """Tags by the names of the folders right below root; and the photos that are copies.

    A photo that lies in two folders has both tags: its first path stands for it. Two files are one
    photo if they have the same content, or the same name and the same picture but for what saving
    it once more changes. The same name alone says nothing: many tools number the photos of each
    class.

    Args:
        root (Path): The folder.
        photos (iterable of str): Paths below it, see
            :func:`~pgnn_geo.datasets.listing.list_photos`.

    Raises:
        InputError: If photos lie beside the folders, or the folders are splits.
    """
    photos = list(photos)
    if beside := [photo for photo in photos if "/" not in photo]:
        raise InputError(
            f"'{root}' is to have a folder for each class, but there are photos beside them: "
            f"{first_of(beside)}; move them away, or name a file of tags"
        )
    classes = {photo.split("/", 1)[0] for photo in photos}
    if classes and {name.casefold() for name in classes} <= _SPLITS:
        raise InputError(
            f"'{root}' has the splits {', '.join(sorted(classes))}; name one of them: '{root}/"
            f"{min(classes)}'"
        )
    first = _originals(root, photos)
    tags: dict[str, dict[str, None]] = {}
    for photo in photos:
        tags.setdefault(first[photo], {})[photo.split("/", 1)[0]] = None
    found = {photo: tuple(names) for photo, names in tags.items()}
    if copies := [f"{photo} is {first[photo]}" for photo in photos if photo not in found]:
        note(f"'{root}': a photo in several folders has the tags of all: {first_of(copies)}")
    return found, set(photos) - set(found)


def _originals(root: Path, photos: list[str]) -> dict[str, str]:
    """The first path of the same photo, for each path."""
    first = {photo: photo for photo in photos}
    there = [photo for photo in photos if (root / photo).is_file()]
    for group in _grouped((root / photo).stat().st_size for photo in there):
        own = [there[i] for i in group]
        for same in _grouped(_digest(root / photo) for photo in own):
            first |= {own[i]: own[same[0]] for i in same}
    for group in _grouped(PurePosixPath(photo).name.casefold() for photo in photos):
        kinds: list[tuple[str, torch.Tensor | None]] = []
        for photo in (photos[i] for i in group):
            if first[photo] != photo:
                continue
            small = _thumbnail(root / photo)
            twin = next((name for name, seen in kinds if _same(seen, small)), None)
            if twin is None:
                kinds.append((photo, small))
            else:
                first |= {other: twin for other, own in first.items() if own == photo}
    return first


def _grouped(keys: Iterable[object]) -> list[list[int]]:
    """Places of equal keys, where there are several."""
    places: dict[object, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return [own for own in places.values() if len(own) > 1]


def _digest(path: Path) -> bytes:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def _thumbnail(path: Path) -> torch.Tensor | None:
    """Brightness of a photo in 16 x 16 cells, and its shape; :obj:`None` if it cannot be read."""
    try:
        photo = load_photo(path)
    except InputError:
        return None
    small = adaptive_avg_pool2d(photo.float().mean(dim=0, keepdim=True), 16)
    return torch.cat([small.flatten(), torch.tensor(photo.shape[1:]).float()])


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two thumbnails are of one photo: two grey levels apart, and of the same picture."""
    if one is None or other is None or not torch.equal(one[-2:], other[-2:]):
        return False
    pictures = torch.stack([one[:-2], other[:-2]])
    alike = torch.corrcoef(pictures)[0, 1] > 0.99  # false for photos of one colour
    return bool(alike and (pictures[0] - pictures[1]).abs().mean() <= 2)
