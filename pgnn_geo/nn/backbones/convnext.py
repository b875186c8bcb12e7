"""ConvNeXts of torchvision."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pgnn_geo.nn.backbones.base import Backbone
from pgnn_geo.nn.backbones.entries import BACKBONES, torchvision_entry
from pgnn_geo.nn.backbones.weights import load_trunk

NAMES = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")


class Downsampling(nn.Module):
    """The normalisation and the 2 x 2 convolution before a stage, at a stride of two or dilated.

    Args:
        norm, conv (torch.nn.Module): Both.
    """

    def __init__(self, norm: nn.Module, conv: nn.Conv2d) -> None:
        super().__init__()
        self.norm, self.conv = norm, conv
        self.set_dilation(None)

    def set_dilation(self, dilation: int | None) -> None:
        """Dilate by so much and keep the resolution; :obj:`None`: halve it."""
        self.conv.stride = (2, 2) if dilation is None else (1, 1)
        self.conv.dilation = (dilation or 1, dilation or 1)
        before = (dilation or 0) // 2
        after = (dilation or 0) - before  # as many positions out as in
        self.padding = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input of the stage."""
        return self.conv(F.pad(self.norm(x), self.padding))


class ConvNeXtBackbone(Backbone):
    """A ConvNeXt up to its last block: four stages, each but the first behind its own downsampling.

    Where a stage keeps its resolution, its 2 x 2 convolution and the 7 x 7 ones after that are
    dilated.

    Args:
        features (nn.Sequential): A torchvision ConvNeXt's :obj:`features`.
        **kwargs: See :class:`Backbone`.
    """

    whole_cells = True

    def __init__(self, features: nn.Sequential, **kwargs: Any):
        parts = list(features)  # stem or downsampling, blocks, and so on
        stages = [nn.Sequential(parts[0], parts[1])]
        for reduction, blocks in zip(parts[2::2], parts[3::2], strict=True):
            norm, conv = reduction.children()
            assert isinstance(conv, nn.Conv2d)
            stages.append(nn.Sequential(Downsampling(norm, conv), blocks))
        last = [m for m in features.modules() if isinstance(m, nn.Conv2d)][-1]
        super().__init__(nn.ModuleList(stages), out_channels=last.out_channels, **kwargs)

    @property
    def largest_stride(self) -> int:
        """The stride when nothing is dilated: the stem has 4."""
        return 2 ** (len(self.stages) + 1)

    def _set_output_stride(self, output_stride: int) -> None:
        stride, dilation = 4, 1
        for stage in self.stages:
            reduction, blocks = stage.children()
            if isinstance(reduction, Downsampling):
                if stride < output_stride:
                    stride *= 2
                    reduction.set_dilation(None)
                else:
                    reduction.set_dilation(dilation)
                    dilation *= 2
            for layer in blocks.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.dilation, layer.padding = (dilation, dilation), (3 * dilation,) * 2


def _build(name: str, state: Mapping[str, Tensor] | None, **kwargs: Any) -> ConvNeXtBackbone:
    model = torchvision.models.get_model(name, weights=None)
    if state is not None:
        model.classifier = nn.Identity()  # not used
        load_trunk(model, state)
    return ConvNeXtBackbone(model.features, **kwargs)


for _name in NAMES:
    BACKBONES.register(_name)(torchvision_entry(_name, partial(_build, _name)))
