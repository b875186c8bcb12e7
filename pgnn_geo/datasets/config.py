"""Which data set: the choice of photos, tags and classes that a job is given."""

import os
from dataclasses import dataclass
from typing import Literal

from pgnn_geo.datasets.base import TaggedDataset
from pgnn_geo.datasets.folder import TaggedFolder
from pgnn_geo.datasets.shapes import Shapes
from pgnn_geo.datasets.voc import VOC2012


@dataclass(frozen=True)
class DataConfig:
    """Which photos, tags and classes.

    Args:
        data (str): "voc" (VOC layout), "folder" (photos and a CSV of tags) or "shapes" (embedded).
        root (str): Folder of the data set.
        split (str): Split of VOC: train, trainval, train_aug or val.
        classes (str, optional): Comma-separated class names that restrict the task; label images
            use 1..K in this order.
        tags (str): For VOC: auto, annotations, csv, masks or a CSV file; for a folder: its CSV
            file.
        masks (str, optional): For a folder: folder of true masks ID.png, for measuring, or for
            training where they are asked for.
    """

    data: Literal["voc", "folder", "shapes"] = "voc"
    root: str = ""
    split: str = "train"
    classes: str | None = None
    tags: str = "auto"
    masks: str | None = None

    @property
    def name(self) -> str:
        """How a ledger calls it: :obj:`"folder"`, or the data set and its split."""
        return "folder" if self.data == "folder" else f"{self.data} {self.split}"

    def build(self, with_masks: bool = False) -> TaggedDataset:
        """Open the data set.

        Raises:
            InputError: If it is not there or does not fit the arguments.
        """
        if self.data == "shapes":
            return Shapes(self.root, self.split, with_masks=with_masks)
        if self.data == "folder":
            csv = os.path.join(self.root, "labels.csv") if self.tags == "auto" else self.tags
            masks = self.masks if with_masks else None
            return TaggedFolder(self.root, csv, classes=self.classes, masks=masks)
        return VOC2012(self.root, self.split, self.classes, self.tags, with_masks=with_masks)

    def has_masks(self) -> bool:
        """Whether there is a truth to measure against."""
        if self.data == "folder":
            return self.masks is not None
        dataset = self.build()
        return isinstance(dataset, VOC2012) and dataset.has_masks
