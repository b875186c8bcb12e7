"""Layers and models."""

from pgnn_geo.nn.backbones import Backbone, build_backbone
from pgnn_geo.nn.class_embedding import ClassEmbedding, ClassRelation
from pgnn_geo.nn.complementary_block import ComplementaryBlock
from pgnn_geo.nn.complementary_conv import ComplementaryConv
from pgnn_geo.nn.decoder import AttentionDecoder, normalize_attention
from pgnn_geo.nn.deeplab import DeepLabV2
from pgnn_geo.nn.pgnn import PGNN, PGNNOutput
from pgnn_geo.nn.propagation import CongenericPropagation
from pgnn_geo.nn.prototypes import ClassPrototypes
from pgnn_geo.nn.segmentation_network import SegmentationNetwork
from pgnn_geo.nn.torchvision_segmentation import TorchvisionSegmentation

__all__ = [
    "PGNN",
    "AttentionDecoder",
    "Backbone",
    "ClassEmbedding",
    "ClassPrototypes",
    "ClassRelation",
    "ComplementaryBlock",
    "ComplementaryConv",
    "CongenericPropagation",
    "DeepLabV2",
    "PGNNOutput",
    "SegmentationNetwork",
    "TorchvisionSegmentation",
    "build_backbone",
    "normalize_attention",
]
