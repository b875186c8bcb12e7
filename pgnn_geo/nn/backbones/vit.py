"""Vision transformers of torchvision."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pgnn_geo.nn.backbones.base import WholeBackbone
from pgnn_geo.nn.backbones.entries import BACKBONES, torchvision_entry
from pgnn_geo.nn.backbones.weights import load_trunk

NAMES = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")


class ViTMaps(nn.Module):
    """The tokens of a transformer's patches as maps, after three quarters of its blocks and all.

    Positions are embedded as the weights have it for the size that they were trained on, resized.

    Args:
        model (torchvision.models.VisionTransformer): The network.
    """

    def __init__(self, model: torchvision.models.VisionTransformer) -> None:
        super().__init__()
        self.embed, self.encoder, self.class_token = (
            model.conv_proj,
            model.encoder,
            model.class_token,
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return both maps, normalised as the last one's classifier had it."""
        x = self.embed(images)  # [B, C, h, w]
        height, width = x.shape[2:]
        tokens = x.flatten(2).mT  # [B, hw, C]
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = self.encoder.dropout(tokens + self._positions(height, width))
        blocks, maps = list(self.encoder.layers), list[Tensor]()
        for i, block in enumerate(blocks, start=1):
            tokens = block(tokens)
            if i in (len(blocks) * 3 // 4, len(blocks)):
                folded = self.encoder.ln(tokens)[:, 1:].mT
                maps.append(folded.unflatten(2, (height, width)))
        return maps

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the embedding of the class token and of so many positions :obj:`[1, 1+hw, C]`."""
        embedding: Tensor = self.encoder.pos_embedding
        side = math.isqrt(embedding.size(1) - 1)
        if (side, side) == (height, width):
            return embedding
        grid = embedding[:, 1:].mT.unflatten(2, (side, side))
        grid = F.interpolate(grid, (height, width), mode="bicubic", antialias=True)
        return torch.cat([embedding[:, :1], grid.flatten(2).mT], dim=1)


def _build(name: str, state: Mapping[str, Tensor] | None, **kwargs: Any) -> WholeBackbone:
    side = None if state is None else state.get("encoder.pos_embedding")
    options = {}
    if side is not None:  # some weights are for larger photos than the model is by default
        patch = int(name.rsplit("_", 1)[1])
        options = {"image_size": math.isqrt(side.size(1) - 1) * patch}
    model = torchvision.models.get_model(name, weights=None, **options)
    if state is not None:
        model.heads = nn.Identity()  # not used
        load_trunk(model, state)
    return WholeBackbone(ViTMaps(model), model.hidden_dim, [model.patch_size], **kwargs)


for _name in NAMES:
    BACKBONES.register(_name)(torchvision_entry(_name, partial(_build, _name)))
