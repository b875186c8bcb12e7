r"""Backbone trunks: images in, one feature map at a chosen output stride out."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnn_geo.errors import InputError


class Backbone(nn.Module):
    r"""A classification trunk made dense: :obj:`[B, 3, H, W]` to :obj:`[B, C, H / s, W / s]`.

    The network is a list of *stages*; each stage that would take the stride beyond
    :obj:`output_stride` keeps its resolution and the layers after it are dilated instead (the
    *à trous* trick of `"DeepLab" <https://arxiv.org/abs/1412.7062>`_), so the weights fit every
    stride and :meth:`set_output_stride` may change it at any time: train at 16, label at 8.

    Args:
        stages (nn.ModuleList): The stages, in order.
        out_channels (int): :math:`C`.
        mean, std (tuple): Per-channel mean and standard deviation for images in :math:`[0, 1]`.
        scale (float): Constant by which the output is multiplied, so that features of photos have
            a root mean square near 1 whatever the range the weights were trained for.
            (default: :obj:`1.0`)

    Shapes:
        - **input:** images :math:`(B, 3, H, W)`, RGB in :math:`[0, 1]`
        - **output:** features :math:`(B, C, \lceil H/s \rceil, \lceil W/s \rceil)`
    """

    #: Whether images are first resized to whole cells of the map, as patches of the input need.
    whole_cells = False
    mean: Tensor
    std: Tensor
    scale: Tensor

    def __init__(
        self,
        stages: nn.ModuleList,
        out_channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = 1.0,
    ):
        super().__init__()
        self.stages = stages
        self.out_channels = out_channels
        self.frozen_stages = 0
        self.frozen_norm = False
        self.output_stride = 0
        # Part of the state: weights mean nothing without the input that they were trained for.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map of a batch of images in :math:`[0, 1]`."""
        return self.trunk(self.stem(images))

    def stem(self, images: Tensor) -> Tensor:
        """Run the normalisation and the frozen stages: what never changes in training."""
        x = self._prepare(images)
        for stage in self.stages[: self.frozen_stages]:
            x = stage(x)
        return x

    def trunk(self, x: Tensor) -> Tensor:
        """Run the trained stages on the output of :meth:`stem`."""
        for stage in self.stages[self.frozen_stages :]:
            x = stage(x)
        return self._finish(x) * self.scale

    def levels(self, x: Tensor) -> list[Tensor]:
        """Run :meth:`trunk` and return the outputs of the last two stages, of one size.

        The last stage tells what a thing is, the one before more of what it looks like. They are
        not scaled: :meth:`trunk` is the last times :attr:`scale`. Where all stages are frozen,
        there is but the last.

        Args:
            x (torch.Tensor): Output of :meth:`stem`.
        """
        levels = [x]
        for stage in self.stages[self.frozen_stages :]:
            levels = [levels[-1], stage(levels[-1])]
        levels[-1] = self._finish(levels[-1])
        height, width = levels[-1].shape[-2:]
        return [F.adaptive_avg_pool2d(level, (height, width)) for level in levels]

    def last_two(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the last two stages for images in :math:`[0, 1]`.

        Each is at its own stride and not scaled; which stages are frozen makes no difference.
        """
        x = self._prepare(images)
        levels: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            levels = [*levels[-1:], x]
        return [levels[0], self._finish(levels[1])]

    def _prepare(self, images: Tensor) -> Tensor:
        """Normalise images, and resize them if need be."""
        x = (images - self.mean) / self.std
        stride, (height, width) = self.output_stride, x.shape[-2:]
        size = (math.ceil(height / stride) * stride, math.ceil(width / stride) * stride)
        if self.whole_cells and size != (height, width):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x

    def _finish(self, x: Tensor) -> Tensor:
        """Do what follows the last stage."""
        return x

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.mean.device

    def set_output_stride(self, output_stride: int) -> "Backbone":
        """Set strides and dilations, in place.

        Args:
            output_stride (int): One of :attr:`strides`.

        Raises:
            InputError: If it is another number.
        """
        choices = self.strides
        if output_stride not in choices:
            raise InputError(f"'output_stride' must be one of {choices}, got {output_stride!r}.")
        self._set_output_stride(output_stride)
        self.output_stride = output_stride
        return self

    @property
    def strides(self) -> list[int]:
        """The strides that its map can have: of a family that cannot be dilated, one."""
        return [stride for stride in (8, 16, 32) if stride <= self.largest_stride]

    def nearest_stride(self, output_stride: int) -> int:
        """Return the one of :attr:`strides` that is nearest by its ratio, the smaller of two."""
        return min(self.strides, key=lambda s: abs(math.log(s / output_stride)))

    @property
    def largest_stride(self) -> int:
        """The stride when nothing is dilated."""
        return 2 ** len(self.stages)

    def _set_output_stride(self, output_stride: int) -> None:
        raise NotImplementedError

    def freeze(self, stages: int | None) -> "Backbone":
        """Stop gradients in the first :obj:`stages` stages; in all of them with :obj:`None`.

        Raises:
            InputError: If there are not so many.
        """
        stages = len(self.stages) if stages is None else stages
        if not 0 <= stages <= len(self.stages):
            raise InputError(
                f"'freeze_stages' of this backbone must lie in 0..{len(self.stages)}, got {stages}."
            )
        for i, stage in enumerate(self.stages):
            stage.requires_grad_(i >= stages)
        if self.frozen_norm:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.frozen_stages = stages
        return self.train(self.training)

    def freeze_norms(self) -> "Backbone":
        """Keep the batch norms, statistics and weights, as those of pretrained weights are kept.

        Batches are small, and what they are trained on is not what the statistics are of.
        """
        self.frozen_norm = True
        return self.freeze(self.frozen_stages)

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> "Backbone":
        """Set the training mode; frozen stages and pretrained batch norms keep their statistics."""
        super().train(mode)
        for stage in self.stages[: self.frozen_stages]:
            stage.eval()
        if self.frozen_norm:
            for norm in self._norms():
                norm.eval()
        return self


class WholeBackbone(Backbone):
    """A network that gives its maps in one call: one stage, which is frozen or trained as a whole.

    Args:
        body (torch.nn.Module): Normalised images :obj:`[B, 3, H, W]` in, one map or more out, the
            last one last. Of :meth:`~Backbone.last_two` the last two are taken.
        out_channels (int): Channels of the last map.
        strides (sequence of int): Strides that the last map can have.
        mean, std, scale: See :class:`Backbone`.
    """

    whole_cells = True

    def __init__(
        self,
        body: nn.Module,
        out_channels: int,
        strides: Sequence[int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = 1.0,
    ):
        super().__init__(nn.ModuleList([body]), out_channels, mean, std, scale)
        self._strides = sorted(strides)

    @property
    def strides(self) -> list[int]:
        """The strides that its map can have."""
        return self._strides

    @property
    def largest_stride(self) -> int:
        """The stride when nothing is dilated."""
        return self._strides[-1]

    def stem(self, images: Tensor) -> Tensor:
        """Run the normalisation, and if it is frozen the network."""
        x = self._prepare(images)
        return self._maps(x)[-1] if self.frozen_stages else x

    def trunk(self, x: Tensor) -> Tensor:
        """Run the network on the output of :meth:`stem`, unless that has."""
        return (x if self.frozen_stages else self._maps(x)[-1]) * self.scale

    def levels(self, x: Tensor) -> list[Tensor]:
        """See :meth:`Backbone.levels`."""
        if self.frozen_stages:
            return [x]
        levels = self._maps(x)
        height, width = levels[-1].shape[-2:]
        return [F.adaptive_avg_pool2d(level, (height, width)) for level in levels]

    def last_two(self, images: Tensor) -> list[Tensor]:
        """See :meth:`Backbone.last_two`."""
        return self._maps(self._prepare(images))

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = self.stages[0](x)
        return [maps] if isinstance(maps, Tensor) else list(maps)[-2:]

    def _set_output_stride(self, output_stride: int) -> None:
        """Nothing: there is one."""
