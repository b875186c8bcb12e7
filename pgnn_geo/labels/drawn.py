"""What people draw by hand, in label images: strokes, masks of parts, and boxes."""

import torch
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import IGNORE


def with_strokes(labels: Tensor, drawn: Tensor) -> Tensor:
    r"""Put what was drawn in the place of labels.

    .. math::
        C'_u = \begin{cases} D_u & \text{if } D_u \neq 255 \\ C_u & \text{otherwise} \end{cases}

    Args:
        labels (Tensor): Label image :math:`C` of shape :math:`(H, W)`.
        drawn (Tensor): Label image :math:`D` of the same shape: 0 where someone drew background,
            :math:`1..K` a class, 255 where nothing was drawn.

    Raises:
        InputError: If the shapes differ.
    """
    if labels.shape != drawn.shape:
        raise InputError(f"labels {list(labels.shape)}, drawn {list(drawn.shape)}: want one shape")
    return torch.where(drawn == IGNORE, labels, drawn.to(labels.dtype))


def within_boxes(labels: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    r"""Keep labels within the boxes that were drawn around the objects of a photo.

    With :math:`\mathcal{B}_u` the classes whose boxes hold the pixel :math:`u`,

    .. math::
        C'_u = \begin{cases}
        0 & \text{if } \mathcal{B}_u = \emptyset \\
        C_u & \text{if } C_u \in \mathcal{B}_u \cup \{0\} \\
        255 & \text{otherwise}
        \end{cases}

    Every object has a box, so outside of all is background for certain. Where a box holds nothing
    of its own class, all of its pixels that are not of another box's class become 255: its object
    was missed, and where in the box it is remains open.

    Args:
        labels (Tensor): Label image :math:`C` of shape :math:`(H, W)`: 0 background, :math:`1..K`,
            255 ignore.
        boxes (Tensor): Boxes :math:`(n, 4)` as x1, y1, x2, y2 in pixels; a pixel that a box
            touches is inside.
        classes (Tensor): The class of each box :math:`(n)`, :math:`1..K`.

    Raises:
        InputError: If there are not as many classes as boxes.
    """
    if boxes.shape != (len(classes), 4):
        raise InputError(f"boxes {list(boxes.shape)}: want [{len(classes)}, 4], one of each class")
    height, width = labels.shape
    inside = torch.zeros_like(labels, dtype=torch.bool)
    right, missed = torch.zeros_like(inside), torch.zeros_like(inside)
    corners = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).long().clamp(min=0)
    for (x1, y1, x2, y2), k in zip(corners.tolist(), classes.tolist(), strict=True):
        box = slice(y1, min(y2, height)), slice(x1, min(x2, width))
        found = labels[box] == k
        inside[box] = True
        right[box] |= found
        if not found.any():
            missed[box] = True
    open_ = inside & ~right & (missed | (labels != 0))
    result = torch.where(inside, labels, 0)
    return torch.where(open_, IGNORE, result).to(labels.dtype)
