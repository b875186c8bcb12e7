"""A backbone from any module of one's own."""

import math

import torch
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.nn.backbones.base import WholeBackbone
from pgnn_geo.nn.backbones.weights import IMAGENET_MEAN, IMAGENET_STD


class _Folded(nn.Module):
    """Lays the tokens of a module's output :obj:`[B, N, C]` to a map, row by row."""

    def __init__(self, module: nn.Module, prefix_tokens: int, stride: int) -> None:
        super().__init__()
        self.module, self.prefix_tokens, self.stride = module, prefix_tokens, stride

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.module(images)[:, self.prefix_tokens :]
        size = [side // self.stride for side in images.shape[-2:]]
        return tokens.mT.unflatten(2, size)


@torch.no_grad()
def from_module(
    module: nn.Module,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    scale: float = 1.0,
    prefix_tokens: int | None = None,
    side: int = 224,
) -> WholeBackbone:
    r"""Return a backbone whose maps are what a module answers to normalised images.

    Its stride and channels are found out on one image of zeros. To choose it by name, register it:

    .. code-block:: python

        @BACKBONES.register("mine")
        ...

    Args:
        module (torch.nn.Module): Images :math:`(B, 3, H, W)` in; out a map :math:`(B, C, h, w)`, a
            list of maps, of which the last two are used, or tokens :math:`(B, N, C)`, row by row.
        mean, std (tuple): What the module takes for granted of its input, for images in
            :math:`[0, 1]`. (default: those of ImageNet)
        scale (float): See :class:`~pgnn_geo.nn.Backbone`. (default: :obj:`1.0`)
        prefix_tokens (int, optional): Of a module that answers with tokens: how many come before
            those of places.
        side (int): Side of that image; a multiple of the stride. (default: :obj:`224`)

    Raises:
        InputError: If the answer is no map, or its stride is no whole number.
    """
    training = module.training
    answer = module.eval()(torch.zeros(1, 3, side, side))
    module.train(training)
    last = answer if isinstance(answer, Tensor) else answer[-1]
    if prefix_tokens is not None and last.dim() == 3:
        count = math.isqrt(last.size(1) - prefix_tokens)
        fits, cells, channels = count**2 == last.size(1) - prefix_tokens, count, last.size(2)
    else:
        fits = prefix_tokens is None and last.dim() == 4 and last.size(2) == last.size(3)
        cells, channels = last.size(-1), last.size(1)
    if not fits or not cells or side % cells:
        raise InputError(
            f"'module' answers to an image {(1, 3, side, side)} with {tuple(last.shape)}: want a "
            "map [1, C, h, h], or tokens [1, N, C] and their prefix_tokens, of a whole stride"
        )
    stride = side // cells
    body = module if prefix_tokens is None else _Folded(module, prefix_tokens, stride)
    backbone = WholeBackbone(body, channels, [stride], mean, std, scale)
    backbone.set_output_stride(stride)
    return backbone
