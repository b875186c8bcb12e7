"""Label images and segmenters for other tools."""

from collections.abc import Sequence
from pathlib import Path

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.exports import Export, write_exports
from pgnn_geo.io.run_folder import console


def export(checkpoint: str, out: str = "segmenter.onnx") -> None:
    """Write a segmenter as an ONNX file, for "predict" and for programs without PyTorch.

    Args:
        checkpoint: Folder of a segmenter that "segment" wrote, or its id on the Hub.
        out: The file.
    """
    path = Segmenter.from_pretrained(checkpoint).export_onnx(out)
    console.print(f"onnx: {path}", soft_wrap=True)


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
