"""Which data set: the choice of photos, tags and classes that a job is given."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pgnn_geo.datasets.base import TaggedDataset
from pgnn_geo.datasets.folder import TaggedFolder
from pgnn_geo.datasets.formats import recognise
from pgnn_geo.datasets.shapes import Shapes
from pgnn_geo.datasets.voc import VOC2012


@dataclass(frozen=True)
class DataConfig:
    """Which photos, tags and classes.

    Args:
        data (str): "voc" (VOC layout), "folder" (photos and a file of tags), "shapes" (embedded),
            or "auto" to find out which of the first two it is.
        root (str): Folder of the data set.
        split (str): Split of VOC: train, trainval, train_aug or val.
        classes (str, optional): Comma-separated class names that restrict the task; label images
            use 1..K in this order.
        tags (str): For VOC: auto, annotations, csv, masks or a CSV file; for a folder: a file of
            this or another tool, labels.csv by default, or "folders".
        masks (str, optional): For a folder: folder of true masks ID.png, for measuring, or for
            training where they are asked for.
        max_pixels (int, optional): Largest photo that is read, width times height; 178,956,970 if
            not given.
    """

    data: Literal["voc", "folder", "shapes", "auto"] = "voc"
    root: str = ""
    split: str = "train"
    classes: str | None = None
    tags: str = "auto"
    masks: str | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.data == "auto":
            data, tags = recognise(Path(self.root))
            object.__setattr__(self, "data", data)
            object.__setattr__(self, "tags", tags if self.tags == "auto" else self.tags)

    @property
    def name(self) -> str:
        """How a ledger calls it: :obj:`"folder"`, or the data set and its split."""
        return "folder" if self.data == "folder" else f"{self.data} {self.split}"

    def build(self, with_masks: bool = False) -> TaggedDataset:
        """Open the data set; with masks, only the photos that have one.

        Raises:
            InputError: If it is not there or does not fit the arguments.
        """
        return self._open(True).where_masked() if with_masks else self._open(False)

    def check(self) -> list[str]:
        """Return what is wrong with photos, tags and the masks that there are, one line each.

        Raises:
            InputError: If the data set cannot be opened.
        """
        return self._open(self.has_masks()).check()

    def _open(self, with_masks: bool) -> TaggedDataset:
        if self.data == "shapes":
            return Shapes(self.root, self.split, with_masks=with_masks)
        rest: dict[str, Any] = {"with_masks": with_masks, "max_pixels": self.max_pixels}
        if self.data == "folder":
            file = os.path.join(self.root, "labels.csv") if self.tags == "auto" else self.tags
            return TaggedFolder(self.root, file, self.classes, self.masks, **rest)
        return VOC2012(self.root, self.split, self.classes, self.tags, **rest)

    def has_masks(self) -> bool:
        """Whether there is a truth to measure against."""
        if self.data == "folder":
            return self.masks is not None
        dataset = self.build()
        return isinstance(dataset, VOC2012) and dataset.has_masks
