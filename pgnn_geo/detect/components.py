"""Connected components of label images and maps, and their boxes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def connected_components(masks: Tensor) -> Tensor:
    r"""Number the connected components of masks, pixels that touch at a corner being connected.

    Every pixel starts with a number of its own and takes the largest one in its 3 x 3
    neighbourhood, then that of the pixel whose number it has taken, until nothing changes; the
    second step makes the number of rounds grow with the logarithm of a component's length on all
    but contrived shapes.

    Args:
        masks (torch.Tensor): Boolean masks.

    Shapes:
        - **masks:** :math:`(n, h, w)`
        - **output:** :math:`(n, h, w)` long: 0 outside, and inside a number 1 or more that the
          pixels of one component of one mask share; numbers have gaps
    """
    count, height, width = masks.shape
    if masks.numel() == 0:
        return masks.long()
    # Max pooling of integers is not available everywhere; floats hold the numbers exactly.
    exact = torch.float if height * width < 2**24 else torch.double
    own = torch.arange(1, height * width + 1, device=masks.device, dtype=exact)
    label = own.view(1, height, width) * masks
    while True:
        spread = F.max_pool2d(label[:, None], 3, stride=1, padding=1)[:, 0] * masks
        flat = F.pad(spread.flatten(1), (1, 0))  # number 0 leads to number 0
        jumped = flat.gather(1, spread.flatten(1).long()).view_as(spread)
        if torch.equal(jumped, label):
            break
        label = jumped
    shift = torch.arange(count, device=masks.device).view(-1, 1, 1) * (height * width)
    return (label.long() + shift) * masks


def component_boxes(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The box around the pixels of each component.

    Args:
        labels (torch.Tensor): Component numbers as :func:`connected_components` gives them.

    Shapes:
        - **labels:** :math:`(n, h, w)`
        - **output:** boxes :math:`(m, 4)` xyxy in pixels, float32; the mask that each is of
          :math:`(m)`; and the place of each pixel's component among the :math:`m`, or -1,
          :math:`(n, h, w)`
    """
    place = torch.full_like(labels, -1)
    mask, y, x = labels.nonzero(as_tuple=True)
    numbers, inverse = labels[mask, y, x].unique(return_inverse=True)
    place[mask, y, x] = inverse
    low = torch.full((len(numbers), 2), max(labels.shape), device=labels.device)
    high = torch.zeros_like(low)
    index = inverse[:, None].expand(-1, 2)
    low = low.scatter_reduce(0, index, torch.stack([x, y], 1), "amin")
    high = high.scatter_reduce(0, index, torch.stack([x, y], 1) + 1, "amax")
    owner = torch.zeros_like(numbers).scatter_(0, inverse, mask)
    return torch.cat([low, high], dim=1).float(), owner, place
