"""Which background of pseudo-labels is certain enough to be learnt."""

import torch
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import IGNORE
from pgnn_geo.labels.refine import resize_maps
from pgnn_geo.labels.seeds import background_score


def certain_labels(
    labels: Tensor,
    attention: Tensor,
    share: float = 0.5,
    background: float | None = 0.2,
    power: float | None = None,
) -> Tensor:
    r"""Ignore background that attention maps do not rule out as an object.

    .. math::
        C'_u = \begin{cases}
        255 & \text{if } C_u = 0 \text{ and } \max_k (U A_k)_u > \rho \, b_u \\
        C_u & \text{otherwise}
        \end{cases}

    with :math:`U` the bilinear upsampling to the labels and :math:`b` the background score that
    the labels were made with: a class had to exceed all of it to be seen, a share :math:`\rho` of
    it makes the place an open question. Pseudo-labels miss parts of objects more often than they
    run over into the background, and a network that learns them misses as much; the less sure
    part of the background holds most of what was missed.

    Args:
        labels (Tensor): Label image :math:`C`: 0 background, :math:`1..K`, 255 ignore.
        attention (Tensor): Attention maps :math:`A` in :math:`[0, 1]`, only of classes that the
            photo has.
        share (float): :math:`\rho` in :math:`(0, 1]`. (default: :obj:`0.5`)
        background, power (float, optional): See :func:`~pgnn_geo.labels.background_score`.

    Shapes:
        - **labels:** :math:`(H, W)`
        - **attention:** :math:`(k, h, w)`
        - **output:** as :obj:`labels`, and of its type

    Raises:
        InputError: If the share or the background score is out of range, or shapes do not fit.
    """
    if not 0 < share <= 1:
        raise InputError(f"'share' of the background score must lie in (0, 1], got {share}")
    if labels.dim() != 2 or attention.dim() != 3:
        raise InputError(
            f"labels {list(labels.shape)} and attention {list(attention.shape)}: want [H, W] and "
            "[k, h, w]"
        )
    if attention.size(0) == 0:  # no class can be here
        return labels.clone()
    maps = resize_maps(attention[None].float(), labels.shape)[0]
    score = background_score(maps, background, power)[0]
    possible = (labels == 0) & (maps.amax(dim=0) > share * score)
    return torch.where(possible, IGNORE, labels).to(labels.dtype)
