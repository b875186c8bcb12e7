"""Swin transformers of torchvision."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn

from pgnn_geo.nn.backbones.base import WholeBackbone
from pgnn_geo.nn.backbones.entries import BACKBONES, torchvision_entry
from pgnn_geo.nn.backbones.weights import load_trunk

NAMES = ("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b")


class SwinMaps(nn.Module):
    """The maps of a Swin transformer's last two stages, at strides 16 and 32.

    Args:
        model (torchvision.models.SwinTransformer): The network.
    """

    def __init__(self, model: torchvision.models.SwinTransformer) -> None:
        super().__init__()
        self.features, self.norm = model.features, model.norm

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return both maps, the last one normalised as its classifier had it."""
        x, maps = images, list[Tensor]()
        for i, part in enumerate(self.features):  # an embedding or a merging, blocks, and so on
            x = part(x)  # [B, h, w, C]
            if i % 2:
                maps.append(x)
        return [x.permute(0, 3, 1, 2) for x in (maps[-2], self.norm(maps[-1]))]


def _build(name: str, state: Mapping[str, Tensor] | None, **kwargs: Any) -> WholeBackbone:
    model = torchvision.models.get_model(name, weights=None)
    channels = model.head.in_features
    if state is not None:
        model.head = nn.Identity()  # not used
        load_trunk(model, state)
    return WholeBackbone(SwinMaps(model), channels, [32], **kwargs)


for _name in NAMES:
    BACKBONES.register(_name)(torchvision_entry(_name, partial(_build, _name)))
