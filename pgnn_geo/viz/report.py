"""What a run shows at its end: the table on the terminal and the overlay sheets."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize_image

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.io.files import mark_results
from pgnn_geo.io.masks import load_mask
from pgnn_geo.viz.overlays import overlay, overlay_sheet


def score_table(columns: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Return a table of IoU, precision and recall per class, one group of columns per result.

    Args:
        columns (mapping): Name of each result and its
            :meth:`~pgnn_geo.metrics.SegmentationScores.to_dict`.
        title (str): Title of the table.
    """
    table = Table(title=f"{title}, per cent")
    table.add_column("class")
    for name in columns:
        for measure in ("IoU", "P", "R"):
            table.add_column(f"{name} {measure}", justify="right")
    results = list(columns.values())
    for name in results[0]["per_class"]:
        table.add_row(name, *_cells([result["per_class"][name] for result in results], "iou"))
    table.add_section()
    for name, key in (("foreground", "foreground"), ("all", "with_background")):
        table.add_row(f"mean, {name}", *_cells([result[key] for result in results], "miou"))
    return table


def error_table(shares: Mapping[str, Any]) -> Table:
    """Return a table of what each kind of error costs every class.

    Args:
        shares (mapping): :meth:`~pgnn_geo.metrics.ErrorShares.to_dict`.
    """
    table = Table(title="IoU that would be gained if all errors of a kind were mended, points")
    table.add_column("class")
    for kind in shares["mean"]:
        table.add_column(kind, justify="right")
    for name, row in shares["per_class"].items():
        table.add_row(name, *_per_cent(row.values()))
    table.add_section()
    table.add_row("mean, all", *_per_cent(shares["mean"].values()))
    return table


def below(
    scores: Mapping[str, Any], others: Mapping[str, Any], margin: float = 0.01
) -> dict[str, float]:
    """Return the classes whose IoU is lower than in other scores, and by how much.

    Args:
        scores, others (mapping): :meth:`~pgnn_geo.metrics.SegmentationScores.to_dict` of both.
        margin (float): What may be lost. (default: :obj:`0.01`)
    """
    pairs = {
        name: (found["iou"], others["per_class"][name]["iou"])
        for name, found in scores["per_class"].items()
    }
    lost = {name: b - a for name, (a, b) in pairs.items() if a is not None and b is not None}
    return {name: loss for name, loss in lost.items() if loss > margin}


def _cells(results: list[Mapping[str, Any]], iou: str) -> list[str]:
    values = [result[measure] for result in results for measure in (iou, "precision", "recall")]
    return _per_cent(values)


def _per_cent(values: Iterable[float | None]) -> list[str]:
    return ["-" if value is None else f"{100 * value:.1f}" for value in values]


def label_sheets(
    folder: Path,
    dataset: TaggedDataset,
    labels: Mapping[str, Path],
    photos: int = 24,
    rows: int = 8,
) -> list[Path]:
    """Write sheets that show photos beside their label images and, where it is known, the truth.

    Args:
        folder (Path): Where :obj:`sheet-1.png` and so on go.
        dataset (TaggedDataset): The photos, with masks if there is a truth to show.
        labels (mapping): Title and folder of each kind of label images.
        photos (int): Photos shown, evenly spread over the data set. (default: :obj:`24`)
        rows (int): Photos per sheet. (default: :obj:`8`)
    """
    mark_results(folder)
    count = min(photos, len(dataset))
    chosen = torch.linspace(0, len(dataset) - 1, count).round().long().tolist()
    pictures = []
    for index in chosen:
        item = dataset[index]
        files = [path / f"{item['image_id']}.png" for path in labels.values()]
        masks = [load_mask(path, dataset.max_pixels) for path in files]
        if "mask" in item:
            masks.append(item["mask"].as_subclass(torch.Tensor))
        image, masks = _shrunk(item["image"].as_subclass(torch.Tensor), masks)
        pictures.append([image, *(overlay(image, mask) for mask in masks)])
    titles = ["photo", *labels, "truth"][: len(pictures[0])]
    return [
        overlay_sheet(
            folder / f"sheet-{start // rows + 1}.png",
            pictures[start : start + rows],
            titles,
            dataset.classes,
        )
        for start in range(0, count, rows)
    ]


def _shrunk(image: Tensor, masks: list[Tensor], side: int = 1024) -> tuple[Tensor, list[Tensor]]:
    """A photo and its labels at the size of a screen: painting takes floats."""
    if max(image.shape[1:]) <= side:
        return image, masks
    size = [max(1, round(n * side / max(image.shape[1:]))) for n in image.shape[1:]]
    nearest = InterpolationMode.NEAREST_EXACT
    small = [resize_image(mask[None], size, interpolation=nearest)[0] for mask in masks]
    return resize_image(image, size, antialias=True), small
