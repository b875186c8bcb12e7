"""The formats of label images that other tools read."""

from pgnn_geo.exports.base import Export
from pgnn_geo.exports.cityscapes import CITYSCAPES
from pgnn_geo.exports.coco import COCO
from pgnn_geo.exports.cvat import CVAT
from pgnn_geo.exports.datumaro import DATUMARO
from pgnn_geo.exports.label_studio import LABEL_STUDIO
from pgnn_geo.exports.voc import VOC
from pgnn_geo.exports.yolo import YOLO

#: A new one is a module beside this one and an entry here.
EXPORTS: tuple[Export, ...] = (VOC, COCO, YOLO, CVAT, LABEL_STUDIO, DATUMARO, CITYSCAPES)
