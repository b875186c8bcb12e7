"""Which data set: the choice of photos, tags and classes that a job is given."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pgnn_geo.datasets.base import TaggedDataset
from pgnn_geo.datasets.folder import TaggedFolder
from pgnn_geo.datasets.formats import recognise
from pgnn_geo.datasets.shapes import Shapes
from pgnn_geo.datasets.voc import VOC2012
from pgnn_geo.options import Fields
from pgnn_geo.registry import Registry

#: Data sets by the name that :attr:`DataConfig.data` has: called with the configuration, and with
#: whether masks are wanted, each opens its photos; a new one is an entry here.
DATASETS = Registry[Callable[["DataConfig", bool], TaggedDataset]]("data set")


@dataclass(frozen=True)
class DataConfig:
    """Which photos, tags and classes.

    Args:
        data (str): "voc" (VOC layout), "folder" (photos and a file of tags), "shapes" (embedded),
            "auto" to find out which of the first two it is, or one of your own.
        root (str): Folder of the data set.
        split (str): Split of VOC: train, trainval, train_aug or val; of a Hugging Face data set
            that a run unpacks, any that it has.
        classes (str, optional): Comma-separated class names that restrict the task; label images
            use 1..K in this order.
        tags (str): For VOC: auto, annotations, csv, masks or a CSV file; for a folder: a file of
            this or another tool, labels.csv by default, "folders", or "beside".
        masks (str, optional): For a folder: folder of true masks ID.png, for measuring, or for
            training where they are asked for.
        max_pixels (int, optional): Largest photo that is read, width times height; 178,956,970 if
            not given.

    Raises:
        InputError: If there is no such data set, or nothing that is known is found.
    """

    data: str = "voc"
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
        DATASETS[self.data]  # which raises if there is none

    @property
    def name(self) -> str:
        """How a ledger calls it: :obj:`"folder"`, or the data set and its split."""
        return f"{self.data} {self.split}" if self.has_splits else self.data

    @property
    def has_splits(self) -> bool:
        """Whether :attr:`split` chooses among the photos; a folder is taken as a whole."""
        return self.data != "folder"

    def build(self, with_masks: bool = False) -> TaggedDataset:
        """Open the data set; with masks, only the photos that have one.

        Raises:
            InputError: If it is not there or does not fit the arguments.
        """
        opened = DATASETS[self.data](self, with_masks)
        return opened.where_masked() if with_masks else opened.without_masks()

    def check(self) -> list[str]:
        """Return what is wrong with photos, tags and the masks that there are, one line each.

        Raises:
            InputError: If the data set cannot be opened.
        """
        photos = DATASETS[self.data](self, self.has_masks())
        if photos.has_masks:
            photos.where_masked()  # which says how many
        return photos.check()

    def has_masks(self) -> bool:
        """Whether there is a truth to measure against."""
        if self.data == "folder":  # without a look at the photos
            return self.masks is not None
        return DATASETS[self.data](self, False).has_masks


#: What a command knows of its photos beside the folder: the values of a :class:`DataConfig`.
PhotoOptions = Annotated[dict[str, Any], Fields(DataConfig, skip=("root",))]


@DATASETS.register("voc")
def _voc(config: DataConfig, with_masks: bool) -> TaggedDataset:
    return VOC2012(
        config.root,
        config.split,
        config.classes,
        config.tags,
        with_masks,
        max_pixels=config.max_pixels,
    )


@DATASETS.register("folder")
def _folder(config: DataConfig, with_masks: bool) -> TaggedDataset:
    return TaggedFolder(
        config.root,
        os.path.join(config.root, "labels.csv") if config.tags == "auto" else config.tags,
        config.classes,
        config.masks,
        with_masks=with_masks,
        max_pixels=config.max_pixels,
    )


@DATASETS.register("shapes")
def _shapes(config: DataConfig, with_masks: bool) -> TaggedDataset:
    return Shapes(config.root, config.split, with_masks=with_masks)
