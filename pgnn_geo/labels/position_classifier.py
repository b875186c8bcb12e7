r"""A linear classifier of positions, trained on what attention maps are sure of."""

from typing import NamedTuple

import torch
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.labels.minimise import minimise

#: Positions whose logits are in memory at a time, so that sums have one order.
_CHUNK = 8192


class Positions(NamedTuple):
    """Positions of photos and what is known of them."""

    features: Tensor  #: centred unit features :math:`(N, C)`
    label: Tensor  #: :math:`(N)`: 0 background, 1..K, or -1 where the maps are not sure
    allowed: Tensor  #: bool :math:`(N, K + 1)`: background and what the photo may show


def confident_labels(
    maps: Tensor, tags: Tensor, foreground: float = 0.55, background: float = 0.25
) -> Tensor:
    r"""Return what the evidence is sure of at every node.

    .. math::
        y = \begin{cases}
        \arg\max_k A_k & \text{if } \max_k A_k > \text{foreground} \\
        0 & \text{if } \max_k A_k < \text{background} \\
        -1 & \text{else}
        \end{cases}

    Args:
        maps (torch.Tensor): Evidence at nodes :obj:`[V, K]` in :math:`[0, 1]`.
        tags (torch.Tensor): Tags of their photos :obj:`[V, K]`; other classes are not looked at.
        foreground (float): Above it a class is seen. (default: :obj:`0.55`)
        background (float): Below it there is background. (default: :obj:`0.25`)

    Returns:
        Labels :obj:`[V]`, long.

    Raises:
        InputError: If not :math:`0 < background \le foreground < 1`.
    """
    if not 0 < background <= foreground < 1:
        raise InputError(
            f"background={background}, foreground={foreground}: want 0 < background <= foreground "
            "< 1"
        )
    best, label = (maps * tags).max(dim=1)
    label = torch.where(best > foreground, label + 1, -1)
    return torch.where(best < background, 0, label)


def fit_position_classifier(
    positions: Positions,
    penalty: float = 1e-4,
    partial: float = 0.3,
    balance: float = 0.5,
    iterations: int = 100,
    start: Tensor | None = None,
) -> Tensor:
    r"""Fit a softmax classifier of :math:`K + 1` labels to positions.

    .. math::
        \min_{\mathbf{W}} \; - \sum_{c=0}^{K} \frac{\omega_c}{|S_c|} \sum_{n \in S_c} \log p_{nc}
        - \frac{\gamma}{N} \sum_{n = 1}^{N} \log \sum_{c \in \mathcal{C}_n} p_{nc}
        + \frac{\lambda}{2} \lVert \mathbf{W} \rVert^2, \qquad
        \mathbf{p}_n = \operatorname{softmax}(\mathbf{W} [\mathbf{x}_n, 1]), \quad
        \omega_c \propto |S_c|^{1 - \beta}

    :math:`S_c` are the positions with label :math:`c`, of which background and frequent classes
    have many; the weights :math:`\omega_c` add up to one. The second term is what tags say for
    certain of every position, with or without a label: it is of background or of one of the
    photo's tags :math:`\mathcal{C}_n`. A linear classifier on purpose: one with a hidden layer
    learns the errors of the labels.

    Args:
        positions (Positions): The positions.
        penalty (float): :math:`\lambda`. (default: :obj:`1e-4`)
        partial (float): :math:`\gamma`. (default: :obj:`0.3`)
        balance (float): :math:`\beta`: with 0 each position counts the same, with 1 each label.
            (default: :obj:`0.5`)
        iterations (int): Steps of L-BFGS. (default: :obj:`100`)
        start (torch.Tensor, optional): Weights to begin with, such as those of the round before;
            zeros if not given.

    Returns:
        The weights :math:`(K + 1, C + 1)`, float32, the bias last.

    Raises:
        InputError: If shapes disagree or no position has a label.
    """
    x, label, allowed = positions
    if x.dim() != 2 or label.shape != x.shape[:1] or len(allowed) != len(x):
        raise InputError(
            f"features {tuple(x.shape)}, label {tuple(label.shape)}, allowed "
            f"{tuple(allowed.shape)}: want [N, C], [N] and [N, K + 1]"
        )
    seen = label >= 0
    if not seen.any():
        raise InputError("No position has a label: the maps are nowhere sure.")
    shape = (allowed.size(1), x.size(1) + 1)
    # One weight per position for each term, so that chunks add up to the means.
    target, second = label.clamp(min=0), partial / len(x)
    count = torch.bincount(label[seen], minlength=shape[0]).to(x).clamp(min=1)
    first = seen * count[target] ** -balance
    first = first / first.sum()
    outside = torch.zeros(allowed.shape, device=x.device).masked_fill_(~allowed, float("-inf"))

    def loss(parameters: Tensor) -> Tensor:
        w = parameters.view(shape)
        parts = [penalty / 2 * w[:, :-1].square().sum()]
        for i in range(0, len(x), _CHUNK):
            rows = slice(i, i + _CHUNK)
            logits = torch.addmm(w[:, -1], x[rows], w[:, :-1].t())
            total = logits.logsumexp(dim=1)
            own = logits.gather(1, target[rows, None])[:, 0]
            within = (logits + outside[rows]).logsumexp(dim=1)
            parts.append((first[rows] * (total - own)).sum() + second * (total - within).sum())
        return torch.stack(parts).sum()

    first_weight = x.new_zeros(shape) if start is None else start
    return minimise(loss, first_weight.flatten(), iterations, tolerance=1e-6).view(shape)


def position_maps(weight: Tensor, features: Tensor, tags: Tensor) -> Tensor:
    r"""Return the probabilities of the tagged classes at every node.

    .. math::
        A_{nk} = \frac{e^{z_{nk}}}{e^{z_{n0}} + \sum_{c \in \mathcal{C}_n} e^{z_{nc}}}
        \quad \text{if } k \in \mathcal{C}_n, \text{ else } 0

    Args:
        weight (torch.Tensor): Of :func:`fit_position_classifier`.
        features (torch.Tensor): Centred unit features of nodes.
        tags (torch.Tensor): The tags of each node's photo.

    Shapes:
        - **weight:** :math:`(K + 1, C + 1)`
        - **features:** :math:`(V, C)`
        - **tags:** :math:`(V, K)`
        - **output:** :math:`(V, K)`
    """
    logits = torch.addmm(weight[:, -1], features, weight[:, :-1].t())
    others = torch.nn.functional.pad(~tags.bool(), (1, 0))
    return logits.masked_fill(others, float("-inf")).softmax(dim=1)[:, 1:]
