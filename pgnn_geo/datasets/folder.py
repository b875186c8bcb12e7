"""A user's own photos with a CSV of tags."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pgnn_geo.datasets.base import TaggedDataset, Transform
from pgnn_geo.datasets.labels import first_of, multi_hot, read_tag_csv, select_classes
from pgnn_geo.errors import InputError

_SUFFIXES = {".jpg", ".jpeg", ".png"}


class TaggedFolder(TaggedDataset):
    r"""Photos in a folder, nested as they may be, and the CSV that tags them.

    A photo's id is its path below :obj:`root` without the extension. Photos are turned upright
    as their EXIF orientation says, as photo viewers and labelling tools show them.

    Args:
        root (str or PathLike): The folder with the JPEG or PNG files.
        csv (str or PathLike): File with the columns :obj:`image,labels`; labels are separated by
            spaces. An image is named by its path below :obj:`root`, or by its file name alone if
            no other photo has it; with or without the extension.
        classes (sequence of str or str, optional): All class names in the order of their labels.
            By default the names in the CSV, sorted.
        masks (str or PathLike, optional): Folder with a palette or grey PNG at :obj:`ID.png` for
            each photo, for measuring.
        transform (callable, optional): Maps an item to an item.
        partial (bool): Accept photos that the CSV leaves out, as where each split has its own.

    Raises:
        InputError: If the folder or the CSV cannot be read, rows are missing or name a photo
            twice, or a class is unknown.
    """

    tag_source = "csv"

    def __init__(
        self,
        root: str | os.PathLike[str],
        csv: str | os.PathLike[str],
        classes: Sequence[str] | str | None = None,
        masks: str | os.PathLike[str] | None = None,
        transform: Transform | None = None,
        partial: bool = False,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"root '{root}' is not a folder")
        if masks is not None and not Path(masks).is_dir():
            raise InputError(f"masks '{masks}' is not a folder")
        rows = read_tag_csv(csv)
        if not rows:
            raise InputError(f"'{csv}' has no rows")
        photos = list_photos(self.root, None if masks is None else Path(masks))
        files = match_photos(list(rows), photos, csv)
        if not partial and (left := sorted(set(photos) - set(files))):
            raise InputError(
                f"'{csv}': no row for photos in '{root}': {first_of(left)}; "
                "tag them, move them away, or pass partial=True"
            )
        image_ids = [os.path.splitext(f)[0] if f in photos else f for f in files]
        if twice := [i for i, count in Counter(image_ids).items() if count > 1]:
            raise InputError(f"'{csv}': more than one row or file for {first_of(twice)}")
        tags = dict(zip(image_ids, rows.values(), strict=True))
        names = sorted({name for labels in rows.values() for name in labels})
        if not names:
            raise InputError(f"'{csv}' has no labels")
        if classes is not None:
            names = classes.split(",") if isinstance(classes, str) else list(classes)
            names = [name.strip() for name in names]
        chosen = select_classes(classes, names)
        super().__init__(
            image_ids,
            [self.root / f for f in files],
            chosen,
            multi_hot(tags, image_ids, chosen, f"'{csv}'"),
            masks=None if masks is None else [Path(masks) / f"{i}.png" for i in image_ids],
            upright=True,
            transform=transform,
        )


def list_photos(root: Path, masks: Path | None) -> dict[str, None]:
    """Photos below root, as posix paths in sorted order; PNGs below masks are not photos."""
    found = (path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if masks is not None:
        inside = masks.resolve()
        found = (p for p in found if p.suffix != ".png" or inside not in p.resolve().parents)
    return dict.fromkeys(sorted(path.relative_to(root).as_posix() for path in found))


def match_photos(
    names: list[str], photos: dict[str, None], csv: str | os.PathLike[str]
) -> list[str]:
    """The photo that each row names; a name that fits none is kept, for `check` to report."""
    exact: dict[str, set[str]] = {}
    loose: dict[str, set[str]] = {}
    for photo in photos:
        for name in {photo, os.path.splitext(photo)[0]}:
            exact.setdefault(name, set()).add(photo)
        path = PurePosixPath(photo)
        for name in {path.name, path.stem}:
            loose.setdefault(name, set()).add(photo)
    files, ambiguous, outside = [], [], []
    for name in names:
        key = name.replace("\\", "/").removeprefix("./")
        fits = exact.get(key) or loose.get(key) or {key}
        if len(fits) > 1:
            ambiguous.append(f"{name} ({' or '.join(sorted(fits))})")
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            outside.append(name)
        files.append(min(fits))
    if ambiguous:
        raise InputError(f"'{csv}': rows that fit several photos: {first_of(ambiguous)}")
    if outside:
        raise InputError(f"'{csv}': rows that point outside the folder: {first_of(outside)}")
    return files
