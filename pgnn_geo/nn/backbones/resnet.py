"""ResNets of torchvision, ResNeXts and wide ones among them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from pgnn_geo.nn.backbones.base import Backbone
from pgnn_geo.nn.backbones.entries import BACKBONES, torchvision_entry
from pgnn_geo.nn.backbones.weights import load_trunk
from pgnn_geo.nn.winograd import with_winograd

NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)


class ResNetBackbone(Backbone):
    """A ResNet up to layer4: its stem and four residual stages.

    Args:
        resnet (torchvision.models.ResNet): A network of basic or of bottleneck blocks.
        **kwargs: See :class:`Backbone`.
    """

    def __init__(self, resnet: torchvision.models.ResNet, **kwargs: Any):
        stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        stages = nn.ModuleList([stem, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        super().__init__(stages, out_channels=resnet.fc.in_features, **kwargs)

    def _set_output_stride(self, output_stride: int) -> None:
        stride, dilation = 4, 1  # after the stem
        for stage, stage_stride in zip(list(self.stages)[1:], (1, 2, 2, 2), strict=True):
            first_dilation = dilation
            if stage_stride > 1 and stride >= output_stride:
                dilation, stage_stride = dilation * stage_stride, 1
            stride *= stage_stride
            for i, block in enumerate(stage.children()):
                assert isinstance(block, BasicBlock | Bottleneck)
                d = first_dilation if i == 0 else dilation  # as torchvision's own dilation
                strided = block.conv2 if isinstance(block, Bottleneck) else block.conv1
                strided.dilation = strided.padding = (d, d)
                strided.stride = (stage_stride, stage_stride) if i == 0 else (1, 1)
                if isinstance(block, BasicBlock):  # its second convolution comes after the stride
                    block.conv2.dilation = block.conv2.padding = (dilation, dilation)
                if i == 0 and isinstance(block.downsample, nn.Sequential):
                    shortcut = block.downsample[0]
                    assert isinstance(shortcut, nn.Conv2d)
                    shortcut.stride = (stage_stride, stage_stride)


def _build(name: str, state: Mapping[str, Tensor] | None, **kwargs: Any) -> ResNetBackbone:
    resnet = with_winograd(torchvision.models.get_model(name, weights=None))
    backbone = ResNetBackbone(resnet, **kwargs)
    if state is not None:  # the classifier is not used
        resnet.fc = nn.Identity()
        load_trunk(resnet, state)
    return backbone


for _name in NAMES:
    BACKBONES.register(_name)(torchvision_entry(_name, partial(_build, _name)))
