"""Tagged photos: VOC 2012, any folder with a CSV, an embedded set; transforms; groups."""

from pgnn_geo.datasets.base import Item, TaggedDataset
from pgnn_geo.datasets.config import DATASETS, DataConfig
from pgnn_geo.datasets.folder import TaggedFolder
from pgnn_geo.datasets.groups import (
    ClassGroupSampler,
    Groups,
    collate_groups,
    partner_groups,
)
from pgnn_geo.datasets.labels import select_classes
from pgnn_geo.datasets.photo_file import load_photo
from pgnn_geo.datasets.shapes import SHAPES_CLASSES, Shapes
from pgnn_geo.datasets.tag_csv import read_tag_csv
from pgnn_geo.datasets.transforms import EvalTransform, SquareTransform, TrainTransform
from pgnn_geo.datasets.voc import VOC2012
from pgnn_geo.io.masks import VOC_CLASSES

__all__ = [
    "DATASETS",
    "SHAPES_CLASSES",
    "VOC2012",
    "VOC_CLASSES",
    "ClassGroupSampler",
    "DataConfig",
    "EvalTransform",
    "Groups",
    "Item",
    "Shapes",
    "SquareTransform",
    "TaggedDataset",
    "TaggedFolder",
    "TrainTransform",
    "collate_groups",
    "load_photo",
    "partner_groups",
    "read_tag_csv",
    "select_classes",
]
