"""Exports of a folder of label images, by name."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from pgnn_geo.errors import InputError
from pgnn_geo.io.export import check_labels
from pgnn_geo.io.exports.base import Export, Labelled
from pgnn_geo.io.exports.registry import EXPORTS
from pgnn_geo.io.files import atomic_folder, mark_results, remove_unfinished
from pgnn_geo.io.masks import load_mask


def check_exports(names: str | None) -> list[Export]:
    """The exports of names with commas; none for :obj:`None`.

    Raises:
        InputError: If there is no such export, or a package that it needs is missing.
    """
    wanted = [name.strip() for name in (names or "").split(",") if name.strip()]
    exports = [EXPORTS[name] for name in dict.fromkeys(wanted)]
    for export in exports:
        if missing := [package for package in export.packages if find_spec(package) is None]:
            raise InputError(
                f"--export {export.name} needs {', '.join(missing)}: pip install 'pgnn-geo[export]'"
            )
    return exports


def write_exports(
    exports: Sequence[Export],
    out: Path,
    photos: Sequence[tuple[str, Path]],
    labels: Path,
    classes: Sequence[str],
    max_pixels: int | None = None,
) -> list[Path]:
    """Write each export into :obj:`out/NAME`, whole or not at all; one that is there is replaced.

    Args:
        exports (sequence of Export): See :func:`check_exports`.
        out (Path): Folder of the exports.
        photos (sequence of tuple): Id and file of each photo.
        labels (Path): Folder of their label images :obj:`ID.png`, with the VOC palette.
        classes (sequence of str): Names of the labels 1..K.
        max_pixels (int, optional): See :func:`~pgnn_geo.io.masks.load_mask`.

    Raises:
        InputError: If a label image is missing or holds labels of no class, or an export cannot be
            written.
    """

    def read() -> Iterator[Labelled]:
        for image_id, photo in photos:
            label = labels / f"{image_id}.png"
            mask = check_labels(load_mask(label, max_pixels).numpy(), image_id, len(classes))
            yield Labelled(image_id, photo, mask, label)

    folders = []
    for export in exports:
        folder = out / export.name
        try:
            remove_unfinished(out)
            mark_results(out)
            with atomic_folder(folder, sync=False) as temporary:
                export.write(temporary, read(), classes)
        except OSError as error:
            raise InputError(f"export {folder} cannot be written: {error}") from error
        folders.append(folder)
    return folders
