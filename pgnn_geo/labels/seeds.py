r"""Seeds: label images out of attention maps and a background score."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.labels.refine import PixelAdaptiveRefinement, Refinement


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
    return _arg_max(_scores(attention, size, background, power), classes)


def refined_labels(
    photos: Iterable[tuple[Tensor, Tensor, Tensor]],
    refinement: Refinement | None = None,
    background: float | None = 0.2,
    power: float | None = None,
) -> Iterator[Tensor]:
    r"""Yield the label image of each photo, from scores that are fitted to the edges in it.

    .. math::
        C = \arg\max \, \mathcal{R}_I \bigl( b, \, U A_1, \dots, U A_k \bigr)

    with :math:`U` the bilinear upsampling to the photo :math:`I`, :math:`b` the background score of
    the upsampled maps, and :math:`\mathcal{R}_I` the refinement: the background is refined as one
    more class, but for a constant one that the averages of :class:`PixelAdaptiveRefinement` would
    leave as it is. Without a refinement this is :func:`seed_labels` of each photo.

    Args:
        photos (iterable): Photo :obj:`[3, H, W]`, uint8 or in :math:`[0, 1]`, attention maps
            :obj:`[k, h, w]` of the :obj:`k` classes that it has, and their labels :obj:`[k]`. A few
            are read ahead where the refinement has a pool of processes.
        refinement (Refinement, optional): See :func:`~pgnn_geo.labels.build_refinement`.
            (default: :obj:`None`)
        background, power (float, optional): See :func:`background_score`.

    Returns:
        Label images :obj:`[H, W]`, uint8, in the order of the photos.
    """
    # Classes of the photos that the refinement has read, and backgrounds that it was spared.
    waiting: deque[tuple[Tensor, Tensor]] = deque()
    constant = 1 if power is None and isinstance(refinement, PixelAdaptiveRefinement) else 0

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for image, attention, classes in photos:
            scores = _scores(attention, image.shape[1:], background, power)
            waiting.append((classes, scores[:constant]))
            yield image, scores[constant:]

    refined = (maps for _, maps in pairs()) if refinement is None else refinement.stream(pairs())
    for scores in refined:
        classes, spared = waiting.popleft()
        yield _arg_max(torch.cat([spared, scores]), classes)


def _scores(
    attention: Tensor, size: Sequence[int] | None, background: float | None, power: float | None
) -> Tensor:
    """Return the scores of background and classes [K + 1, H, W]."""
    if size is not None:
        attention = F.interpolate(
            attention[None], tuple(size), mode="bilinear", align_corners=False
        )[0]
    return torch.cat([background_score(attention, background, power), attention])


def _arg_max(scores: Tensor, classes: Tensor | None) -> Tensor:
    if classes is None:
        classes = torch.arange(1, len(scores), device=scores.device)
    labels = torch.cat([classes.new_zeros(1), classes]).to(torch.uint8)
    best, result = scores[0], labels[0].expand(scores.shape[1:])
    # A tenth of the time that argmax takes along a dimension whose values lie far apart.
    for score, label in zip(scores[1:], labels[1:], strict=True):
        result = torch.where(score > best, label, result)
        best = torch.maximum(best, score)
    return result.contiguous()
