"""One linear map of the channels, whatever positions follow them."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.dense.linear import Linear


class ChannelLinear(Linear):
    r"""Applies :math:`\mathbf{W} \mathbf{x}_u + \mathbf{b}` at each position :math:`u`.

    :class:`torch_geometric.nn.Linear` for features whose positions stand behind their channels.
    They are not transposed for it: it is a convolution of size one, whose output is laid out in
    memory as the input is.

    Args:
        in_channels, out_channels (int): See :class:`torch_geometric.nn.Linear`, as for the rest.

    Shapes:
        - **input:** features :math:`(N, C, *)`
        - **output:** features :math:`(N, C^{\prime}, *)`
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map the channels."""
        if x.dim() == 2:
            return super().forward(x)
        image = x.flatten(2).unsqueeze(2)  # [N, C, 1, P]
        out = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return out.squeeze(2).unflatten(2, x.shape[2:])

    def initialize_parameters(self, module: Any, input: tuple[Tensor, ...]) -> None:
        """Take the number of channels from the first input."""
        super().initialize_parameters(module, (input[0].transpose(1, -1),))
