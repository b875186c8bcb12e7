r"""3 x 3 convolutions with a quarter of the multiplications, where nothing is learnt."""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: :math:`\mathbf{B}^T`, :math:`\mathbf{G}` and :math:`\mathbf{A}^T` of
#: :math:`F(4 \times 4, 3 \times 3)`.
INPUT_TRANSFORM = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
WEIGHT_TRANSFORM = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
OUTPUT_TRANSFORM = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)

ModuleT = TypeVar("ModuleT", bound=nn.Module)

#: Input times output channels from which on it is faster than PyTorch's convolution, and tiles of a
#: photo: the transformed weights, four times as many, are read once for all of them.
_MIN_CHANNELS = 128 * 256
_MIN_TILES = 16

#: Tiles at a time, which stay in the processor's cache.
_TILES = 256


def transform_weight(weight: Tensor) -> Tensor:
    r"""Return :math:`\mathbf{G} \mathbf{g} \mathbf{G}^T` for every pair of channels.

    Args:
        weight (torch.Tensor): Weights of a 3 x 3 convolution :math:`(D, C, 3, 3)`.

    Returns:
        A tensor :math:`(36, C, D)`.
    """
    both = _both_axes(WEIGHT_TRANSFORM, weight)
    out_channels, in_channels = weight.shape[:2]
    flat = weight.permute(2, 3, 1, 0).reshape(9, in_channels * out_channels)
    return (both @ flat).view(36, in_channels, out_channels)


def winograd_conv2d(
    x: Tensor, transformed: Tensor, bias: Tensor | None = None, dilation: int = 1
) -> Tensor:
    r"""Convolve with a 3 x 3 kernel, stride one, as much padding as dilation.

    `Winograd's minimal filtering <https://arxiv.org/abs/1509.09308>`_ of tiles :math:`\mathbf{d}`
    of 6 x 6 positions, each of which gives 4 x 4 outputs:

    .. math::
        \mathbf{Y} = \mathbf{A}^T \Bigl[ \sum_c \bigl( \mathbf{G} \mathbf{g}_c \mathbf{G}^T \bigr)
        \odot \bigl( \mathbf{B}^T \mathbf{d}_c \mathbf{B} \bigr) \Bigr] \mathbf{A}

    36 multiplications where a direct convolution has 144. A dilated convolution is one without
    dilation of every :obj:`dilation`-th row and column.

    Args:
        x (torch.Tensor): Input :math:`(N, C, H, W)`.
        transformed (torch.Tensor): The weights, see :func:`transform_weight`.
        bias (torch.Tensor, optional): Bias :math:`(D)`.
        dilation (int): Dilation and padding. (default: :obj:`1`)

    Returns:
        A tensor :math:`(N, D, H, W)`, channels last in memory. In float32 it differs from
        :func:`torch.nn.functional.conv2d` by less than 2e-4 of the output's standard deviation.
    """
    count, channels, height, width = x.shape
    rows, columns = _tiles(height, dilation), _tiles(width, dilation)
    bottom = dilation * (1 + 4 * rows) - height
    right = dilation * (1 + 4 * columns) - width
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, dilation, right, dilation, bottom))
    x = x.reshape(count, 4 * rows + 2, dilation, 4 * columns + 2, dilation, channels)
    before, after = _both_axes(INPUT_TRANSFORM, x), _both_axes(OUTPUT_TRANSFORM, x)
    strips = []
    step = max(1, _TILES // (count * columns * dilation**2))
    for top in range(0, rows, step):
        part = x[:, 4 * top : 4 * (top + step) + 2]
        tiles = part.unfold(1, 6, 4).unfold(3, 6, 4)  # [N, rows, d, columns, d, C, 6, 6]
        tiles = tiles.permute(6, 7, 0, 1, 2, 3, 4, 5).reshape(36, -1)
        products = (before @ tiles).view(36, -1, channels) @ transformed
        out = after @ products.view(36, -1)
        out = out.view(4, 4, count, -1, dilation, columns, dilation, transformed.size(2))
        strips.append(out.permute(2, 3, 0, 4, 5, 1, 6, 7).flatten(1, 3).flatten(2, 4))
    out = torch.cat(strips, dim=1)[:, :height, :width]
    return (out if bias is None else out + bias).permute(0, 3, 1, 2)


class WinogradConv2d(nn.Conv2d):
    """A convolution that is a :func:`winograd_conv2d` where that is faster, and exact enough.

    That is on a CPU in float32, without gradients, 3 x 3 and wide. Everywhere else it is
    :class:`torch.nn.Conv2d`, whose arguments and state it has. The transformed weights are kept
    until the weights change; they take four times as much memory.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: tuple[Tensor, int, Tensor] | None = None

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "WinogradConv2d":
        """Return a convolution with the parameters of another; they are shared, not copied."""
        other = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
        )
        other.weight, other.bias = conv.weight, conv.bias
        return other.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        if not self._suits(x):
            return super().forward(x)
        return winograd_conv2d(x, self._transformed_weight(), self.bias, self.dilation[0])

    def _suits(self, x: Tensor) -> bool:
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
            or torch.is_autocast_enabled("cpu")
            or x.device.type != "cpu"
            or x.dtype != torch.float32
            or self.weight.dtype != torch.float32
        ):
            return False
        dilation = self.dilation[0]
        same = self.dilation == self.padding == (dilation, dilation) and self.stride == (1, 1)
        dense = self.groups == 1 and self.padding_mode == "zeros" and self.kernel_size == (3, 3)
        wide = self.in_channels * self.out_channels >= _MIN_CHANNELS
        # Of one photo, so that how many there are makes no difference.
        tiles = dilation**2 * _tiles(x.size(-2), dilation) * _tiles(x.size(-1), dilation)
        return same and dense and wide and dilation <= 2 and tiles >= _MIN_TILES

    def _transformed_weight(self) -> Tensor:
        weight = self.weight.detach()
        if weight.is_inference():  # nobody counts its changes
            return transform_weight(weight)
        kept = self._kept
        # The weight of then is held, so that no other can have come to its address.
        if kept is None or kept[0].data_ptr() != weight.data_ptr() or kept[1] != weight._version:
            kept = self._kept = weight, weight._version, transform_weight(weight)
        return kept[2]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made again, from copies and pickles."""
        return {**self.__dict__, "_kept": None}


def with_winograd(module: ModuleT) -> ModuleT:
    """Put :class:`WinogradConv2d` in the place of 3 x 3 convolutions, in place.

    Args:
        module (torch.nn.Module): Any module; its parameters and their names stay.

    Returns:
        The module.
    """
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and child.kernel_size == (3, 3):
            setattr(module, name, WinogradConv2d.of(child))
        else:
            with_winograd(child)
    return module


def _tiles(size: int, dilation: int) -> int:
    return -(-size // (4 * dilation))


def _both_axes(rows: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """Return the matrix that transforms rows and columns of a flattened tile at once."""
    matrix = torch.tensor(rows, dtype=like.dtype, device=like.device)
    return torch.kron(matrix, matrix)
