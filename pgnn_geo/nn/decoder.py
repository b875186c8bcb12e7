"""From features to class score maps, class logits and attention maps."""

from typing import Literal

import torch
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.graph.checks import describe

ActivationName = Literal["relu", "softmax"]


class AttentionDecoder(nn.Conv2d):
    r"""A class activation map: one score map per class, and its mean as the class logit.

    .. math::
        \mathbf{S} = \mathbf{W} * \mathbf{F}, \qquad
        z_k = \frac{1}{hw} \sum_{u} S_{k,u}

    with a convolution of size 1 and no bias, which would shift what the ReLU of an attention map
    cuts off. The mean commutes with it, so :math:`\mathbf{z}` are the logits of
    global average pooling and a linear layer (the identity of `"Learning Deep Features for
    Discriminative Localization" <https://arxiv.org/abs/1512.04150>`_).

    Args:
        channels (int): Channels of the features.
        num_classes (int): Number of foreground classes :math:`K`.

    Shapes:
        - **input:** features :math:`(B, C, h, w)`
        - **output:** scores :math:`(B, K, h, w)` and logits :math:`(B, K)`
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__(channels, num_classes, kernel_size=1, bias=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the score maps and the class logits.

        Args:
            features (torch.Tensor): Features :obj:`[B, C, h, w]`.

        Raises:
            InputError: If the features are not of that shape.
        """
        if features.dim() != 4 or features.size(1) != self.in_channels:
            raise InputError(
                f"`features`: expected [B, {self.in_channels}, h, w], got {describe(features)}"
            )
        scores = super().forward(features)
        return scores, scores.mean(dim=(2, 3))


def normalize_attention(scores: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Turn class scores into attention maps in :math:`[0, 1]`.

    .. math::
        A_{k,u} = \frac{\mathrm{ReLU}(S_{k,u})}{\max(\max_v S_{k,v}, \epsilon)}

    The gradient flows through the maximum: with the maximum as a constant, a loss on
    :math:`\mathbf{A}` can raise the scores without bound and leave the map as it was.

    Args:
        scores (torch.Tensor): Scores :obj:`[B, K, h, w]`.
        eps (float): Smallest divisor; a map with no positive score is all zero.
            (default: :obj:`1e-5`)

    Raises:
        InputError: If the scores are not of four dimensions.
    """
    if scores.dim() != 4:
        raise InputError(f"`scores`: expected [B, K, h, w], got {describe(scores)}")
    if scores.numel() == 0:
        return torch.relu(scores)
    positive = torch.relu(scores)
    return positive / positive.amax(dim=(2, 3), keepdim=True).clamp(min=eps)


def activate(scores: Tensor, activation: ActivationName, tags: Tensor | None = None) -> Tensor:
    r"""Turn class scores into attention maps as a network was trained to make them.

    - :obj:`"relu"`, for a network trained by image tags alone: :func:`normalize_attention`.
    - :obj:`"softmax"`, for one trained by :class:`~pgnn_geo.losses.SeedingLoss`: the probability
      of each class beside a background of score zero,

      .. math::
          A_{k,u} = \frac{\exp S_{k,u}}{1 + \sum_{l} \exp S_{l,u}}

    Args:
        scores (torch.Tensor): Scores :obj:`[B, K, h, w]`.
        activation (str): :obj:`"relu"` or :obj:`"softmax"`.
        tags (torch.Tensor, optional): Multi-hot tags :obj:`[B, K]`: other classes get zero, and
            take no part in the softmax. (default: :obj:`None`)
    """
    present = None if tags is None else tags[:, :, None, None] > 0
    if activation == "relu":
        attention = normalize_attention(scores)
        return attention if present is None else attention * present
    if present is not None:
        scores = scores.masked_fill(~present, -torch.inf)
    background = scores.new_zeros(scores.size(0), 1, *scores.shape[2:])
    return torch.cat([background, scores], dim=1).softmax(dim=1)[:, 1:]
