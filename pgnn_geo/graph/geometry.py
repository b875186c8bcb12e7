"""Where the patches of a group lie on its feature maps."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.errors import InputError


@dataclass(frozen=True)
class GroupGeometry:
    r"""What :func:`~pgnn_geo.graph.stitch` has to know of a group, kept on the host.

    It is no tuple on purpose: PyG takes a sequence as long as the graph has nodes for a node
    attribute.

    Args:
        num_images (int): Images in the group, those without any node included.
        height (int): Height of the feature maps.
        width (int): Width of the feature maps.
        grid (int): Cells per side, or 0 if the patches are boxes.
        background (bool): Whether the last node of each image is its background node.
    """

    num_images: int
    height: int
    width: int
    grid: int
    background: bool

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a grid cell."""
        return -(-self.height // self.grid), -(-self.width // self.grid)

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Left, right, top and bottom padding that makes the map a multiple of the grid."""
        (ph, pw), s = self.cell, self.grid
        dh, dw = ph * s - self.height, pw * s - self.width
        # Split evenly: one-sided padding would fill whole cells on far more sizes.
        return dw // 2, dw - dw // 2, dh // 2, dh - dh // 2


def patch_class(maps: Tensor, grid: int, threshold: float = 0.3) -> Tensor:
    r"""The class of each grid patch, from class maps.

    The class whose map has the largest mean in the patch, as 1 to :math:`K`, if that mean exceeds
    the threshold; else 0, background.

    Args:
        maps (torch.Tensor): Maps in [0, 1].
        grid (int): The patches per side :math:`S`.
        threshold (float): The least mean. (default: :obj:`0.3`)

    Shapes:
        - **maps:** :math:`(B, K, h, w)`
        - **output:** :math:`(B \cdot S^2)`, image by image, row by row, long

    Raises:
        InputError: If :obj:`grid` or :obj:`threshold` is out of range.
    """
    if grid < 1 or threshold < 0:
        raise InputError(f"grid={grid}, threshold={threshold}: want 1 or more, and 0 or more")
    count, _, height, width = maps.shape
    geometry = GroupGeometry(count, height, width, grid, background=False)
    padded = F.pad(maps, geometry.padding, mode="replicate")  # as the patches are
    best, label = F.avg_pool2d(padded, geometry.cell).max(dim=1)
    return torch.where(best > threshold, label + 1, 0).flatten()


def box_pixels(boxes: Tensor, image: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    r"""Lists the pixels that each box covers, that is, overlaps.

    Args:
        boxes (torch.Tensor): Boxes inside the image, xyxy.
        image (torch.Tensor): The image of each box.
        height (int): Height of the images.
        width (int): Width of the images.

    Shapes:
        - **boxes:** :math:`(k, 4)`
        - **image:** :math:`(k)`
        - **output:** box :math:`(P)` and pixel :math:`(P)` of each pair; pixels are numbered over
          :math:`(B, h, w)`
    """
    x1, y1 = boxes[:, :2].floor().long().unbind(1)
    x2, y2 = boxes[:, 2:].ceil().long().unbind(1)
    columns = x2 - x1
    count = columns * (y2 - y1)
    box = torch.repeat_interleave(count)
    nth = torch.arange(box.size(0), device=box.device) - (count.cumsum(0) - count)[box]
    row = nth.div(columns[box], rounding_mode="floor")
    # One gather for what depends on the box alone.
    start = image * (height * width) + y1 * width + x1
    return box, start[box] + row * width + (nth - row * columns[box])


def covered(boxes: Tensor, image: Tensor, num_images: int, height: int, width: int) -> Tensor:
    """Whether any box of the image covers a pixel, that is, overlaps it: [B, h, w], bool."""
    x1, y1 = boxes[:, :2].floor().long().unbind(1)
    x2, y2 = boxes[:, 2:].ceil().long().unbind(1)
    # What the four corners of a box add sums, over rows and columns, to 1 inside it and 0 outside.
    corners = image.repeat(4), torch.cat([y1, y1, y2, y2]), torch.cat([x1, x2, x1, x2])
    one = torch.ones_like(x1)
    sums = x1.new_zeros(num_images, height + 1, width + 1)
    sums.index_put_(corners, torch.cat([one, -one, -one, one]), accumulate=True)
    return sums.cumsum(1).cumsum(2)[:, :-1, :-1] > 0
