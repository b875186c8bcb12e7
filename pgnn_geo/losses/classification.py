r"""Classification loss on the means of the class score maps."""

import torch.nn.functional as F
from torch import Tensor


def classification_loss(
    logits: Tensor,
    tags: Tensor,
    backbone_logits: Tensor | None = None,
    backbone_weight: float = 0.4,
) -> Tensor:
    r"""The loss :math:`\mathcal{L}_c` that image tags alone give (Eq. 10).

    .. math::
        \mathcal{L}_c = \ell(z, y) + \lambda_b \, \ell(z^{\mathrm{backbone}}, y), \qquad
        \ell(z, y) = -\frac{1}{K} \sum_k y_k \log \sigma(z_k) + (1 - y_k) \log \sigma(-z_k)

    The second term, on the head before the graph, keeps the features telling by themselves.

    Args:
        logits (torch.Tensor): Logits after the graph :obj:`[B, K]`.
        tags (torch.Tensor): Multi-hot tags :obj:`[B, K]`.
        backbone_logits (torch.Tensor, optional): Logits before the graph :obj:`[B, K]`.
        backbone_weight (float): :math:`\lambda_b`. (default: :obj:`0.4`)
    """
    loss = F.multilabel_soft_margin_loss(logits.float(), tags.float())
    if backbone_logits is not None:
        before = F.multilabel_soft_margin_loss(backbone_logits.float(), tags.float())
        loss = loss + backbone_weight * before
    return loss
