"""The formats of files of tags."""

from pgnn_geo.datasets.formats.base import TagFormat
from pgnn_geo.datasets.formats.coco import COCO
from pgnn_geo.datasets.formats.cvat import CVAT
from pgnn_geo.datasets.formats.datumaro import DATUMARO
from pgnn_geo.datasets.formats.imagenet import IMAGENET
from pgnn_geo.datasets.formats.label_studio import LABEL_STUDIO, LABEL_STUDIO_MIN
from pgnn_geo.datasets.formats.tables import COLUMNS, LABELS

#: In the order in which they are tried; a new one is a module beside this one and an entry here.
FORMATS: tuple[TagFormat, ...] = (
    COCO,
    DATUMARO,
    LABEL_STUDIO,
    LABEL_STUDIO_MIN,
    CVAT,
    IMAGENET,
    COLUMNS,
    LABELS,
)
