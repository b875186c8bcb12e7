"""Backbones: photos in, feature maps out; torchvision's, timm's and one's own."""

# The families, each of which adds its entries.
from pgnn_geo.nn.backbones import convnext, resnet, swin, timm, vgg, vit
from pgnn_geo.nn.backbones.base import Backbone, WholeBackbone
from pgnn_geo.nn.backbones.entries import (
    BACKBONES,
    BackboneEntry,
    BackboneName,
    BackboneSource,
    build_backbone,
    find_backbone,
    resolve_weights,
)
from pgnn_geo.nn.backbones.module import from_module
from pgnn_geo.nn.backbones.resnet import ResNetBackbone
from pgnn_geo.nn.backbones.vgg import VGGBackbone
from pgnn_geo.nn.backbones.weights import IMAGENET_MEAN, IMAGENET_STD, PretrainedWeights

__all__ = [
    "BACKBONES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "BackboneEntry",
    "BackboneName",
    "BackboneSource",
    "PretrainedWeights",
    "ResNetBackbone",
    "VGGBackbone",
    "WholeBackbone",
    "build_backbone",
    "convnext",
    "find_backbone",
    "from_module",
    "resnet",
    "resolve_weights",
    "swin",
    "timm",
    "vgg",
    "vit",
]
