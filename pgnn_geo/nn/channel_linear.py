"""One linear map of the channels, whatever positions follow them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.dense.linear import Linear

#: Elements from which on the convolution wins, see :class:`ChannelLinear`.
LARGE = 100_000


class ChannelLinear(Linear):
    r"""Applies :math:`\mathbf{W} \mathbf{x}_u + \mathbf{b}` at each position :math:`u`.

    :class:`torch_geometric.nn.Linear` for features whose positions stand behind their channels.
    They are not transposed for it: the output is laid out in memory as the input is.

    It is a convolution of size one, and on CPUs large inputs in single precision go that way: torch
    then asks oneDNN rather than the BLAS it was built with, which took half the time forward and
    backward on an AMD processor with AVX-512.

    Args:
        in_channels, out_channels (int): See :class:`torch_geometric.nn.Linear`, as for the rest.

    Shapes:
        - **input:** features :math:`(N, C)` or :math:`(N, C, P)`
        - **output:** features :math:`(N, C^{\prime})` or :math:`(N, C^{\prime}, P)`
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map the channels."""
        if x.dim() == 2:
            return self._rows(x)
        if is_channels_last(x):
            out = self._rows(x.mT.reshape(-1, x.size(1)))
            return out.view(x.size(0), x.size(2), self.out_channels).mT
        return self._convolve(x.unsqueeze(3)).squeeze(3)

    def _rows(self, x: Tensor) -> Tensor:
        """Map rows [M, C]."""
        if not x.is_cpu or x.dtype != torch.float or x.numel() < LARGE:
            return super().forward(x)
        image = x.reshape(1, -1, 1, x.size(1)).permute(0, 3, 1, 2)  # [1, C, M, 1], channels last
        return self._convolve(image).permute(0, 2, 3, 1).reshape(-1, self.out_channels)

    def _convolve(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)

    def initialize_parameters(self, module: Any, input: tuple[Tensor, ...]) -> None:
        """Take the number of channels from the first input."""
        x = input[0]
        super().initialize_parameters(module, (x if x.dim() == 2 else x.mT,))


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of features [N, C, P] are next to each other in memory."""
    return x.size(2) == 1 or x.size(0) == 0 or (x.stride(1) == 1 and x.stride(2) >= x.size(1))
