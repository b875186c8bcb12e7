r"""Sinkhorn's normalization of attention logits: what makes softmax rows a transport plan.

Rows are targets and columns are sources. Whatever is added to a column, the row's softmax that
follows makes its weights sum to one; here is what to add so that those of the columns are equal.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch_geometric.utils import scatter

from pgnn_geo.nn.fusion import is_eager


def column_potential(logits: Tensor, rounds: int) -> Tensor:
    r"""Return what is added to the columns of dense logits before the softmax of their rows.

    .. math::
        u_{\alpha} = - \log \sum_{\beta} e^{l_{\alpha\beta} + v_{\beta}}, \qquad
        v_{\beta} = - \log \sum_{\alpha} e^{l_{\alpha\beta} + u_{\alpha}}

    in turns, beginning with :math:`v = 0`. Gradients go through all rounds, of which the backward
    pass makes each anew: memory does not grow with their number.

    Args:
        logits (torch.Tensor): Logits in which every row and column has a finite one.
        rounds (int): Number of rounds, 1 or more.

    Shapes:
        - **logits:** :math:`(*, N, M)`
        - **output:** :math:`(*, 1, M)`
    """
    v = logits.new_zeros(())
    for _ in range(rounds):
        u = _cheaply(_minus_log_sum, logits, v, -1)
        v = _cheaply(_minus_log_sum, logits, u, -2)
    return v


def edge_potential(
    logits: Tensor, target: Tensor, source: Tensor, sizes: tuple[int, int], rounds: int
) -> Tensor:
    r"""Return what is added to each edge's logit before the softmax over its target's edges.

    :func:`column_potential` of a matrix that has the edges alone.

    Args:
        logits (torch.Tensor): Logits of edges.
        target, source (torch.Tensor): Their ends.
        sizes ((int, int)): The number of targets and of sources.
        rounds (int): Number of rounds, 1 or more.

    Shapes:
        - **logits:** :math:`(|\mathcal{E}|, H)`
        - **target, source:** :math:`(|\mathcal{E}|)`
        - **output:** :math:`(|\mathcal{E}|, H)`
    """
    v = torch.zeros_like(logits)
    for _ in range(rounds):
        u = _cheaply(_minus_log_sum_at, logits, v, target, sizes[0])
        v = _cheaply(_minus_log_sum_at, logits, u, source, sizes[1])
    return v


def _minus_log_sum(logits: Tensor, added: Tensor, dim: int) -> Tensor:
    return -(logits + added).logsumexp(dim=dim, keepdim=True)


def _minus_log_sum_at(logits: Tensor, added: Tensor, index: Tensor, size: int) -> Tensor:
    """The same over edges that share an end, for each edge: [E, H]."""
    logits = logits + added
    largest = scatter(logits.detach(), index, 0, size, reduce="max")
    total = scatter((logits - largest[index]).exp(), index, 0, size, reduce="sum")
    return -(total.clamp(min=1).log() + largest)[index]  # less than 1 where there is no edge


def _cheaply(step: Callable[..., Tensor], logits: Tensor, *args: object) -> Tensor:
    """Take a step, whose sums as large as the logits are not kept for the backward pass."""
    if not (torch.is_grad_enabled() and logits.requires_grad and is_eager(logits)):
        return step(logits, *args)
    out: Tensor = checkpoint(step, logits, *args, use_reentrant=False, preserve_rng_state=False)
    return out
