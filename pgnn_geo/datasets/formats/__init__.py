"""Tags in the files of other tools; see :obj:`FORMATS` for which."""

from pgnn_geo.datasets.formats.base import TagFile, TagFormat, Tags
from pgnn_geo.datasets.formats.beside import read_files_beside
from pgnn_geo.datasets.formats.folders import read_class_folders
from pgnn_geo.datasets.formats.read import BESIDE, FOLDERS, read_tags, recognise
from pgnn_geo.datasets.formats.registry import FORMATS

__all__ = [
    "BESIDE",
    "FOLDERS",
    "FORMATS",
    "TagFile",
    "TagFormat",
    "Tags",
    "read_class_folders",
    "read_files_beside",
    "read_tags",
    "recognise",
]
