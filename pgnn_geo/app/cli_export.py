"""Data sets from other tools; label images and segmenters for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgnn_geo.datasets import TaggedDataset, load_photo
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.datasets.formats.read import is_packed
from pgnn_geo.datasets.hugging_face import unpack as unpack_hugging_face
from pgnn_geo.datasets.hugging_face import unpack_once
from pgnn_geo.datasets.photos import find_photos
from pgnn_geo.errors import InputError, note
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.exports import Export, write_exports
from pgnn_geo.io.run_folder import console, progress
from pgnn_geo.ranks import Ranks


def export(
    checkpoint: str, out: str = "segmenter.onnx", int8: str | None = None, int8_photos: int = 64
) -> None:
    """Write a segmenter as an ONNX file, for "predict" and for programs without PyTorch.

    Args:
        checkpoint: Folder of a segmenter that "segment" wrote, or its id on the Hub.
        out: The file.
        int8: Folder of photos such as it will see: convolutions then compute in 8 bits, whose
            ranges are those that occur on these photos. Faster, and not quite as exact.
        int8_photos: How many of them are looked at, evenly spread over the folder.
    """
    seen = None
    if int8 is not None:
        _, found = find_photos([int8])
        if int8_photos < 1:
            raise InputError(f"--int8_photos must be 1 or more, got {int8_photos}")
        step = max(1, len(found) / int8_photos)
        chosen = [found[int(i * step)] for i in range(min(int8_photos, len(found)))]
        seen = (load_photo(photo.path) for photo in progress(chosen, "int8", len(chosen)))
    path = Segmenter.from_pretrained(checkpoint).export_onnx(out, seen)
    console.print(f"onnx: {path}", soft_wrap=True)


def unpack(
    source: str,
    out: str = "photos",
    split: str | None = None,
    image: str | None = None,
    tags: str | None = None,
    classes: str | None = None,
) -> None:
    """Write the photos and tags of a Hugging Face data set as files that "run" reads. Resumes.

    Args:
        source: Folder of datasets.save_to_disk, folder of parquet files, or a parquet file.
        out: Folder of the photos and of labels.csv.
        split: Which split; needed if there are several.
        image: Column of the photos, if their type does not tell.
        tags: Column of the tags, if their type does not tell.
        classes: Names of the classes with commas, where tags are mere numbers.
    """
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    done = unpack_hugging_face(source, out, split, image, tags, names, progress)
    console.print(
        f"photos: {out}, {done.photos} of split {done.split}, {len(done.classes)} classes: "
        f"{', '.join(done.classes)}",
        soft_wrap=True,
        highlight=False,
    )


def unpacked(root: str, out: Path, ranks: Ranks, **source: Any) -> DataConfig:
    """Return which photos a run is of: those of a packed data set are written to OUT/photos first.

    Args:
        root (str): Folder or file of the data set.
        out (Path): Folder of the run.
        ranks (Ranks): Its processes.
        **source: The other options of :class:`~pgnn_geo.datasets.config.DataConfig`.
    """
    if source.get("data") != "auto" or not is_packed(Path(root)):
        return DataConfig(root=root, **source)
    named = source.get("classes")
    names = None if named is None else [name.strip() for name in named.split(",")]
    split = source.get("split", DataConfig.split)

    def write() -> Path:
        note(f"'{root}' is a Hugging Face data set; its photos are written to '{out / 'photos'}'")
        return unpack_once(root, out / "photos", split, names, progress)

    tags = ranks.first(write)
    return DataConfig(root=str(tags.parent), **source | {"data": "folder", "tags": str(tags)})


def export_photos(
    exports: Sequence[Export],
    out: Path,
    photos: Sequence[tuple[str, Path]],
    labels: Path,
    classes: Sequence[str],
    max_pixels: int | None = None,
) -> None:
    """Write label images into :obj:`out/exports` and say where, see :func:`write_exports`."""
    folders = write_exports(exports, out / "exports", photos, labels, classes, max_pixels)
    for folder in folders:
        console.print(f"export: {folder}", soft_wrap=True)


def export_dataset(
    exports: Sequence[Export], out: Path, dataset: TaggedDataset, labels: Path
) -> None:
    """Write the label images of a data set in the same way."""
    photos = [(name, dataset.image_path(i)) for i, name in enumerate(dataset.image_ids)]
    export_photos(exports, out, photos, labels, dataset.classes, dataset.max_pixels)
