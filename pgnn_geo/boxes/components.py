"""Connected components of label images and maps, and their boxes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def connected_components(masks: Tensor) -> Tensor:
    r"""Number the connected components of masks, pixels that touch at a corner being connected.

    The pixels of a row that follow each other are one run. Runs that touch those of the row above
    are joined: each takes the largest number around it, then the number of the run whose number it
    has taken, until nothing changes. There are far fewer runs than pixels, and the second step
    makes the number of rounds grow with the logarithm of a component's length on all but contrived
    shapes.

    Args:
        masks (torch.Tensor): Boolean masks.

    Shapes:
        - **masks:** :math:`(n, h, w)`
        - **output:** :math:`(n, h, w)` long: 0 outside, and inside a number 1 or more that the
          pixels of one component of one mask share; numbers have gaps
    """
    if masks.numel() == 0:
        return masks.long()
    starts = masks & ~F.pad(masks, (1, -1))
    run = starts.flatten().cumsum(0).view_as(starts) * masks
    above, below = _touching_runs(masks, starts, run)
    label = torch.arange(int(starts.sum()) + 1, device=masks.device)
    while True:
        ends = label[above], label[below]
        largest = torch.maximum(*ends)
        spread = label
        for index in (above, below, *ends):
            spread = spread.scatter_reduce(0, index, largest, "amax")
        jumped = spread[spread]
        if torch.equal(jumped, label):
            return label[run]
        label = jumped


def _touching_runs(masks: Tensor, starts: Tensor, run: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of a run and one in the row below that it touches; no pair comes more than thrice."""
    # Straight down, where either begins; across a corner, where nothing straight joins the two.
    straight = masks[:, :-1] & masks[:, 1:] & (starts[:, :-1] | starts[:, 1:])
    right = masks[:, :-1, :-1] & ~masks[:, :-1, 1:] & starts[:, 1:, 1:]
    left = starts[:, :-1, 1:] & masks[:, 1:, :-1] & ~masks[:, 1:, 1:]
    upper, lower = run[:, :-1], run[:, 1:]
    above = [upper[straight], upper[:, :, :-1][right], upper[:, :, 1:][left]]
    below = [lower[straight], lower[:, :, 1:][right], lower[:, :, :-1][left]]
    return torch.cat(above), torch.cat(below)


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
