r"""Seeds: label images out of attention maps and a background score."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.errors import InputError


def background_score(
    attention: Tensor, background: float | None = 0.2, power: float | None = None
) -> Tensor:
    r"""Return the score :math:`[..., 1, h, w]` that a class must exceed to be seen.

    .. math::
        b = \text{background} \quad \text{or} \quad
        b(x) = \bigl( 1 - \max_k A_k(x) \bigr)^{\text{power}}

    Args:
        attention (torch.Tensor): Attention maps :obj:`[..., K, h, w]` in :math:`[0, 1]`.
        background (float, optional): The constant score in :math:`(0, 1)`. (default: :obj:`0.2`)
        power (float, optional): Exponent of the second rule, which is taken if it is given; the
            larger, the more foreground. (default: :obj:`None`)

    Raises:
        InputError: If neither is given, or a value is out of range.
    """
    peak = attention.amax(dim=-3, keepdim=True)
    if power is not None:
        if power <= 0:
            raise InputError(f"'power' of the background score must be positive, got {power}.")
        return (1 - peak).pow(power)
    if background is None or not 0 < background < 1:
        raise InputError(f"'background' score must lie in (0, 1), got {background}.")
    return torch.full_like(peak, background)


def seed_labels(
    attention: Tensor,
    size: tuple[int, int] | None = None,
    classes: Tensor | None = None,
    background: float | None = 0.2,
    power: float | None = None,
) -> Tensor:
    r"""Return the label image :math:`\arg\max(b, A_1, \dots, A_K)` of one photo.

    Args:
        attention (torch.Tensor): Attention maps :obj:`[K, h, w]` in :math:`[0, 1]`, only of
            classes that the photo has.
        size (tuple, optional): Height and width of the photo, to which the maps are upsampled
            bilinearly first. (default: :obj:`None`)
        classes (torch.Tensor, optional): Label of each map :obj:`[K]`; 1..K if not given.
        background, power (float, optional): See :func:`background_score`.

    Returns:
        Label image :obj:`[H, W]`, uint8, 0 for background.
    """
    if size is not None:
        attention = F.interpolate(attention[None], size, mode="bilinear", align_corners=False)[0]
    if classes is None:
        classes = torch.arange(1, len(attention) + 1, device=attention.device)
    labels = torch.cat([classes.new_zeros(1), classes]).to(torch.uint8)
    scores = torch.cat([background_score(attention, background, power), attention])
    return labels[scores.argmax(dim=0)]
