"""What decides the outcome of a run: data, network, training, maps, labels."""

import os
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from pgnn_geo.datasets import VOC2012, Shapes, TaggedDataset, TaggedFolder
from pgnn_geo.labels.inference import MapConfig
from pgnn_geo.nn import PGNN
from pgnn_geo.nn.backbones import BackboneName
from pgnn_geo.training.attention import AttentionTrainingConfig

ModelName = Literal["cam", "pgnn"]


@dataclass(frozen=True)
class DataConfig:
    """Which photos, tags and classes.

    Args:
        data (str): :obj:`"voc"`, :obj:`"folder"` or :obj:`"shapes"`.
        root (str): The data set's folder.
        split (str): Split of VOC or Shapes.
        classes (str, optional): Comma-separated names that restrict the task.
        tags (str): Source of tags: for VOC see :class:`~pgnn_geo.datasets.VOC2012`; for a folder
            the CSV file.
        masks (str, optional): Folder of true masks of a folder data set, for measuring only.
    """

    data: Literal["voc", "folder", "shapes"] = "voc"
    root: str = ""
    split: str = "train"
    classes: str | None = None
    tags: str = "auto"
    masks: str | None = None

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


@dataclass(frozen=True)
class ModelConfig:
    """The network, see :class:`~pgnn_geo.nn.PGNN`.

    Args:
        backbone (str): Trunk.
        weights (str, optional): Pretrained weights.
        freeze_stages (int): Leading stages of the trunk that are not trained.
        output_stride (int): Stride in training; labelling has its own.
        grid (int): Patches per side.
        layers (int): Blocks.
        heads (int): Attention heads.
        class_embedding (str, optional): What the classes of nodes do.
    """

    backbone: BackboneName = "vgg16"
    weights: str | None = "DEFAULT"
    freeze_stages: int = 4
    output_stride: int = 16
    grid: int = 4
    layers: int = 1
    heads: int = 8
    class_embedding: Literal["attention", "input"] | None = "attention"

    def build(self, name: ModelName, num_classes: int) -> PGNN:
        """Build the P-GNN, or its CAM baseline, which has no graph."""
        options = asdict(self)
        if name == "cam":
            options["layers"] = 0
        return PGNN(num_classes=num_classes, **options)


@dataclass(frozen=True)
class LabelConfig:
    """From attention maps to label images, see :func:`~pgnn_geo.labels.seed_labels`.

    Args:
        background (float): Constant background score.
        power (float, optional): Exponent of the other rule, taken if given.
    """

    background: float = 0.2
    power: float | None = None


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the outcome of :func:`run`."""

    data: DataConfig
    network: ModelConfig = field(default_factory=ModelConfig)
    train: AttentionTrainingConfig = field(default_factory=AttentionTrainingConfig)
    maps: MapConfig = field(default_factory=MapConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)

    def maps_of(self, name: ModelName) -> MapConfig:
        """Return how the maps of a model are inferred: the baseline's without propagation."""
        return replace(self.maps, propagate="none") if name == "cam" else self.maps
