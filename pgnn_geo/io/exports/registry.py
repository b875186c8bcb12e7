"""The formats of label images that other tools read."""

from pgnn_geo.io.exports.base import Export
from pgnn_geo.io.exports.cityscapes import CITYSCAPES
from pgnn_geo.io.exports.coco import COCO
from pgnn_geo.io.exports.cvat import CVAT
from pgnn_geo.io.exports.datumaro import DATUMARO
from pgnn_geo.io.exports.label_studio import LABEL_STUDIO
from pgnn_geo.io.exports.voc import VOC
from pgnn_geo.io.exports.yolo import YOLO
from pgnn_geo.registry import Registry

#: A new one is a module beside this one and an entry here.
EXPORTS = Registry[Export]("export")
for _export in (VOC, COCO, YOLO, CVAT, LABEL_STUDIO, DATUMARO, CITYSCAPES):
    EXPORTS.register(_export.name)(_export)
