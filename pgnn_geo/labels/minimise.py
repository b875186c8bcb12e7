"""Minimisation of a smooth function, the same way every time."""

from collections.abc import Callable

import torch
from torch import Tensor


def minimise(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    iterations: int = 500,
    tolerance: float = 1e-7,
) -> Tensor:
    """Return where L-BFGS with a strong Wolfe line search takes a function from :obj:`start`.

    All data in every step and no draw: the result depends on the arguments alone.

    Args:
        loss (callable): From parameters :obj:`[n]` to a scalar, differentiable by autograd.
        start (torch.Tensor): Initial parameters :obj:`[n]`.
        iterations (int): The most steps. (default: :obj:`500`)
        tolerance (float): Largest entry of the gradient at which it ends. (default: :obj:`1e-7`)
    """
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=iterations,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = loss(parameters)
            value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return parameters.detach()
