"""Which files of a folder are photos, and which of them a name means."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from PIL import Image

from pgnn_geo.datasets.photo_file import PHOTO_SUFFIXES
from pgnn_geo.errors import InputError, note
from pgnn_geo.io.files import RESULT_MARK

#: Colours, at most, of an image that is taken for one of labels, not for a photo.
_COLORS = 64

T = TypeVar("T")

#: Images of other formats, which are named where they are left out.
_FOREIGN = frozenset({".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".gif"})

#: Folders of copies that other programs make. Names that begin with a dot are left out anyway:
#: ``._`` files of macOS, ``.ipynb_checkpoints``, ``.thumbnails``.
_COPIES = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})


def first_of(names: Iterable[str], limit: int = 5) -> str:
    """Name the first few offenders and count them all, for error messages."""
    names = list(names)
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"{shown} ({len(names)} in all)"


def same_form(name: str) -> str:
    """One Unicode form (NFC) of a name: macOS writes ``ö`` as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def list_photos(root: Path, leave_out: Iterable[Path] = ()) -> dict[str, None]:
    """Photos below root, as posix paths in sorted order.

    Folders that links lead to are listed once, below the first of their names. Hidden files and
    folders, copies of other programs, and the results of this package are no photos. Nor are label
    images, see :func:`_label_folders`; what is left out of these, or because of its format, is said
    by an :class:`~pgnn_geo.errors.InputNote`.

    Args:
        root (Path): The folder.
        leave_out (iterable of Path): Folders whose PNG files are no photos, such as one of masks.
    """
    hidden = {Path(folder).resolve() for folder in leave_out}
    found, foreign = [], []
    for folder, names in _walk(root):
        masks = bool(hidden) and not hidden.isdisjoint((here := folder.resolve(), *here.parents))
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            path = folder.relative_to(root) / name
            if suffix in _FOREIGN:
                foreign.append(path.as_posix())
            elif suffix in PHOTO_SUFFIXES and not (masks and suffix == ".png"):
                found.append(path.as_posix())
    if foreign:
        note(
            f"'{root}': left out, as they are neither JPEG nor PNG: {first_of(sorted(foreign))}; "
            "convert them if they are photos"
        )
    labels = _label_folders(root, found)
    for place in labels:
        note(f"'{root / place}' holds label images named as the photos beside it; left out")
    inside = tuple(f"{place}/" for place in labels)
    return dict.fromkeys(sorted(path for path in found if not path.startswith(inside)))


def list_masks(folder: Path) -> dict[str, Path]:
    """The PNG files below a folder, by their paths without the extension, in one Unicode form."""
    return {
        same_form((inside / os.path.splitext(name)[0]).relative_to(folder).as_posix()): inside
        / name
        for inside, names in _walk(folder)
        for name in names
        if name.lower().endswith(".png")
    }


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders and the names of their files, each folder once, however links lead to it."""
    seen: set[str] = set()
    folders: list[Path] = [root]
    links: list[Path] = []
    while folders or links:  # links after all that is there itself
        folder = folders.pop() if folders else links.pop(0)
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise InputError(f"folder '{folder}' cannot be read: {error}") from error
        if RESULT_MARK in names and folder != root:
            continue
        files = []
        for name in names:
            if name.startswith(".") or name in _COPIES:
                continue
            if not os.path.isdir(path := folder / name):
                files.append(name)
            else:
                (links if path.is_symlink() else folders).append(path)
        yield folder, files


def _label_folders(root: Path, photos: Sequence[str]) -> list[str]:
    """Folders of label images: of PNGs, each named as a photo beside the folder or in one beside.

    For ``trip/1.jpg`` and ``trip/2.jpg`` that is ``trip/masks`` with ``1.png`` and ``2.png``, also
    for ``trip/images/1.jpg`` and ``trip/images/2.jpg``. Where photos lie in a folder for each class
    and are numbered in each, they have more colours, or all have as few.
    """
    names = {os.path.splitext(photo)[0]: photo for photo in reversed(photos)}
    inside: dict[str, list[str]] = {}
    for photo in photos:
        for parent in PurePosixPath(photo).parents:
            if parent.name:
                inside.setdefault(parent.as_posix(), []).append(photo)
    folders: dict[PurePosixPath, list[PurePosixPath]] = {}
    for place in map(PurePosixPath, inside):
        folders.setdefault(place.parent, []).append(place)
    found: list[str] = []
    for folder in sorted(inside):
        own, beside = inside[folder], PurePosixPath(folder).parent
        if not all(photo.lower().endswith(".png") for photo in own) or any(
            folder.startswith(f"{place}/") for place in found
        ):
            continue
        stems = [os.path.splitext(photo.removeprefix(f"{folder}/"))[0] for photo in own]
        if _twins(names, beside, stems):
            if all(_is_label_image(root / photo) for photo in own[:8]):
                found.append(folder)
            continue
        for place in folders[beside]:
            twins = _twins(names, place, stems) if place != PurePosixPath(folder) else []
            if (
                twins
                and all(_has_few_colors(root / photo) for photo in own[:8])
                and not any(_has_few_colors(root / photo) for photo in twins[:8])
            ):
                found.append(folder)
                break
    return found


def _twins(names: Mapping[str, str], place: PurePosixPath, stems: Sequence[str]) -> list[str]:
    """The photos of these names in a folder; none if one is missing."""
    found = []
    for stem in stems:
        if (twin := names.get((place / stem).as_posix())) is None:
            return []
        found.append(twin)
    return found


def _is_label_image(path: Path) -> bool:
    """Whether an image is a palette or grey PNG, or one of few colours."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode in ("P", "L"):
                return True
    except Exception:  # whatever it is, it is no label image
        return False
    return _has_few_colors(path)


def _has_few_colors(path: Path) -> bool:
    """Whether an image is a PNG of so few colours or grey levels as one of labels has."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.getcolors(_COLORS) is not None
    except Exception:  # whatever it is, it is no label image
        return False


def match_photos(
    names: Sequence[str],
    photos: Iterable[str],
    source: str | os.PathLike[str],
    exact: bool = True,
) -> list[str]:
    """The photo that each name means; one that fits none is kept, for `check` to report.

    A name is a path below the folder, or the file's name alone, with or without the extension. The
    first of these that fits is taken: the name as it is, in another Unicode form, in other case.

    Args:
        names (sequence of str): What the rows of a table call photos.
        photos (iterable of str): Paths below the folder, see :func:`list_photos`.
        source (str or PathLike): Where the names were read, for error messages.
        exact (bool): Otherwise a name that fits none is shortened from the left, folder by folder:
            other tools know other folders. (default: :obj:`True`)

    Raises:
        InputError: If a name fits several photos, or points outside the folder.
    """
    tables = _tables(list(photos))
    files, ambiguous, outside = [], [], []
    for name in names:
        key = name.replace("\\", "/").removeprefix("./")
        fits = _fitting((name, key), tables)
        while not (fits or exact) and "/" in key:
            key = key.partition("/")[2]
            fits = _fitting((key,), tables)
        if len(fits) > 1:
            shown = " or ".join(sorted(map(_said, fits)))
            ambiguous.append(f"{name} ({shown})")
        path = PurePosixPath(key)
        if not fits and (path.is_absolute() or ".." in path.parts or "\0" in key):
            outside.append(name)
        files.append(min(fits, default=key))
    if ambiguous:
        raise InputError(
            f"'{source}': rows that fit several photos: {first_of(ambiguous)}; name the path below "
            "the folder"
        )
    if outside:
        raise InputError(
            f"'{source}': rows that point outside the folder: {first_of(outside)}; name the path "
            "below the folder, or the file's name alone"
        )
    return files


def match_rows(
    rows: Mapping[str, T],
    photos: Iterable[str],
    source: str | os.PathLike[str],
    exact: bool = True,
) -> dict[str, T]:
    """The rows of a table by the photo that each means, see :func:`match_photos`.

    Raises:
        InputError: As there, and if several rows mean the same photo.
    """
    files = match_photos(list(rows), photos, source, exact)
    if twice := [file for file, count in Counter(files).items() if count > 1]:
        raise InputError(f"'{source}': more than one row or file for {first_of(twice)}")
    return dict(zip(files, rows.values(), strict=True))


def _fitting(
    names: Iterable[str], tables: "list[tuple[Callable[[str], str], dict[str, set[str]]]]"
) -> set[str]:
    found = (table.get(form(name)) for form, table in tables for name in names)
    return next(filter(None, found), set())


def _tables(photos: list[str]) -> list[tuple[Callable[[str], str], dict[str, set[str]]]]:
    """Photos by what they may be called, the surest first, and the form of a name for each."""
    forms: tuple[Callable[[str], str], ...] = (str, same_form, lambda n: same_form(n).casefold())
    tables = []
    for names in (lambda p: {p, os.path.splitext(p)[0]}, _bare_names):
        for form in forms:
            table: dict[str, set[str]] = {}
            for photo in photos:
                for name in names(photo):
                    table.setdefault(form(name), set()).add(photo)
            tables.append((form, table))
    return tables


def _bare_names(photo: str) -> set[str]:
    path = PurePosixPath(photo)
    return {path.name, path.stem}


def _said(photo: str) -> str:
    """A file name, with escapes where another may look the same."""
    return photo if photo.isascii() else ascii(photo)


def told_apart(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Names of files, with escapes and a remark where one of the others looks the same."""
    looks = {same_form(other) for other in others}
    return [
        f"{_said(name)} (looks as another file's name)" if same_form(name) in looks else name
        for name in names
    ]
