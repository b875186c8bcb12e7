"""What a sum over positions or tags is divided by."""

from collections.abc import Callable

from torch import Tensor


def divisor(count: Tensor, average: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return the number that a sum is divided by: never zero, as the sum over nothing is.

    Args:
        count (torch.Tensor): How many the sum is over.
        average (callable, optional): Of a training by several processes, whose gradients are
            averaged: the mean of a number over them. What is in all of them weighs the same then.
    """
    if average is None:
        return count.clamp(min=1)
    return average(count).clamp(min=1e-6)  # a mean may be less than one
