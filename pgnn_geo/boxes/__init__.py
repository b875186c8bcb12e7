"""Boxes from image tags: where they come from, how they are kept and measured."""

from pgnn_geo.boxes.adjuster import (
    BoxAdjuster,
    check_shared_stages,
    decode_boxes,
    encode_boxes,
    jitter_boxes,
)
from pgnn_geo.boxes.attention_boxes import AttentionBoxConfig, AttentionBoxes, attention_boxes
from pgnn_geo.boxes.auxiliary import AuxiliaryBoxes
from pgnn_geo.boxes.box_file import BoxFile, box_record, cached_boxes, write_boxes
from pgnn_geo.boxes.config import BoxConfig
from pgnn_geo.boxes.draw import draw_boxes
from pgnn_geo.boxes.evaluation import (
    BoxScores,
    average_precision,
    boxes_of_mask,
    corloc,
    evaluate_boxes,
    proposal_recall,
    true_boxes,
)
from pgnn_geo.boxes.image_boxes import (
    BoxSource,
    ImageBoxes,
    boxes_to_photo,
    boxes_to_view,
    check_boxes,
)
from pgnn_geo.boxes.inference import DetectionConfig, DetectorBoxes, detect_boxes
from pgnn_geo.boxes.model_file import (
    AdjusterFile,
    DetectorFile,
    load_adjuster,
    load_detector,
    save_adjuster,
    save_detector,
)
from pgnn_geo.boxes.oicr import (
    OICRLabels,
    image_loss,
    oicr_centres,
    oicr_labels,
    refinement_loss,
)
from pgnn_geo.boxes.photo_boxes import PhotoBoxes
from pgnn_geo.boxes.proposals import ProposalCache, ProposalConfig, selective_search
from pgnn_geo.boxes.weak_detector import (
    WeakDetector,
    WeakDetectorOutput,
    pool_boxes,
    select_boxes,
)

__all__ = [
    "AdjusterFile",
    "AttentionBoxConfig",
    "AttentionBoxes",
    "AuxiliaryBoxes",
    "BoxAdjuster",
    "BoxConfig",
    "BoxFile",
    "BoxScores",
    "BoxSource",
    "DetectionConfig",
    "DetectorBoxes",
    "DetectorFile",
    "ImageBoxes",
    "OICRLabels",
    "PhotoBoxes",
    "ProposalCache",
    "ProposalConfig",
    "WeakDetector",
    "WeakDetectorOutput",
    "attention_boxes",
    "average_precision",
    "box_record",
    "boxes_of_mask",
    "boxes_to_photo",
    "boxes_to_view",
    "cached_boxes",
    "check_boxes",
    "check_shared_stages",
    "corloc",
    "decode_boxes",
    "detect_boxes",
    "draw_boxes",
    "encode_boxes",
    "evaluate_boxes",
    "image_loss",
    "jitter_boxes",
    "load_adjuster",
    "load_detector",
    "oicr_centres",
    "oicr_labels",
    "pool_boxes",
    "proposal_recall",
    "refinement_loss",
    "save_adjuster",
    "save_detector",
    "select_boxes",
    "selective_search",
    "true_boxes",
    "write_boxes",
]
