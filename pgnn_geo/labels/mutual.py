r"""Mutual complement of pseudo-labels and predictions."""

import torch
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import IGNORE


def mutual_complement(
    labels: Tensor,
    predicted: Tensor,
    tags: Tensor | None = None,
    confidence: Tensor | None = None,
    threshold: float = 0.9,
) -> Tensor:
    r"""Rewrite pseudo-labels :math:`C` where the segmentation network :math:`\phi` sees foreground.

    .. math::
        C'_i = \begin{cases} \phi_i & \text{if } \phi_i \neq 0 \\ C_i & \text{otherwise} \end{cases}

    which is Eq. 11 of P-GNN, its second and third cases being one. Foreground may change its class
    but never becomes background. An ignored label (255) stays where the network sees background;
    a prediction of 255 counts as background.

    Args:
        labels (Tensor): Labels :math:`C`: 0 background, :math:`1..K`, 255 ignore.
        predicted (Tensor): Labels :math:`\phi` of the network, in the same code.
        tags (Tensor, optional): Multi-hot image tags; a class that the image has no tag of is
            taken for background in :obj:`predicted`. (default: :obj:`None`)
        confidence (Tensor, optional): Probability of each predicted label; only pixels of at least
            :obj:`threshold` are rewritten. (default: :obj:`None`)
        threshold (float): Used with :obj:`confidence` only. (default: :obj:`0.9`)

    Shapes:
        - **labels, predicted, confidence:** :math:`(H, W)` or :math:`(B, H, W)`
        - **tags:** :math:`(K)` or :math:`(B, K)`
        - **output:** as :obj:`labels`, and of its type

    Raises:
        InputError: If the shapes do not fit, or :obj:`predicted` holds a class beyond :math:`K`.
    """
    for name, value in (("predicted", predicted), ("confidence", confidence)):
        if value is not None and value.shape != labels.shape:
            raise InputError(
                f"{name} is {list(value.shape)} but labels are {list(labels.shape)}; resize the "
                "prediction to the labels first"
            )
    rewrite = (predicted != 0) & (predicted != IGNORE)
    if tags is not None:
        if labels.shape[:-2] != tags.shape[:-1]:
            raise InputError(
                f"tags are {list(tags.shape)} but labels {list(labels.shape)}; want one row of K "
                "tags per label image"
            )
        index = predicted.long().masked_fill(~rewrite, 0)
        if index.numel() and int(index.max()) > tags.size(-1):
            raise InputError(
                f"predicted holds class {int(index.max())} but there are {tags.size(-1)} tags"
            )
        present = torch.cat([tags.new_zeros(*tags.shape[:-1], 1), tags], dim=-1) > 0
        rewrite = present.gather(-1, index.flatten(-2)).view_as(index)
    if confidence is not None:
        rewrite = rewrite & (confidence >= threshold)
    return torch.where(rewrite, predicted.to(labels.dtype), labels)
