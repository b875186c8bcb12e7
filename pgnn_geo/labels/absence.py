r"""Tags that are missing: where presence is trusted and absence is not.

A photo that looks more like a class than many photos that have its tag may well show it. With
:math:`s_{ik}` the score of class :math:`k` in photo :math:`i` and :math:`Q_q` a quantile,

.. math::
    d_{ik} = \bigl[ \, t_{ik} = 0 \, \bigr] \; \bigl[ \, s_{ik} > Q_q \{ s_{jk} : t_{jk} = 1 \} \,
    \bigr]

are the absent tags that are not believed. No share of missing tags has to be known: where few are,
few photos score so high.
"""

import torch
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import Features
from pgnn_geo.labels.position_classifier import position_maps
from pgnn_geo.labels.propagation import own_blocks, photo_graphs
from pgnn_geo.nn import CongenericPropagation
from pgnn_geo.nn.propagation import centered_unit
from pgnn_geo.ranks import ALONE, Ranks

#: Share of a photo's positions whose mean is its score: an object need not fill it.
_SHOWN = 0.1


def class_thresholds(scores: Tensor, tags: Tensor, quantile: float) -> Tensor:
    r"""Return the score of each class above which an absent tag is not believed, :obj:`[K]`.

    Args:
        scores (torch.Tensor): :math:`s` :obj:`[M, K]`.
        tags (torch.Tensor): Tags of the same photos :obj:`[M, K]`, bool.
        quantile (float): :math:`q`.

    Returns:
        :math:`Q_q` of the tagged photos of each class; infinity for a class without any.

    Raises:
        InputError: If shapes disagree.
    """
    if scores.shape != tags.shape:
        raise InputError(
            f"scores {tuple(scores.shape)}, tags {tuple(tags.shape)}: want [M, K] of both"
        )
    found = scores.new_full(tags.shape[1:], float("inf"))
    for k, own in enumerate(tags.bool().unbind(1)):
        if own.any():
            found[k] = scores[own, k].quantile(quantile)
    return found


def doubtful(scores: Tensor, tags: Tensor, thresholds: Tensor) -> Tensor:
    """Return the absent tags that are not believed, :obj:`[M, K]`, bool.

    Args:
        scores, tags: See :func:`class_thresholds`.
        thresholds (torch.Tensor): Its result, of these photos or of others.
    """
    return (scores > thresholds) & ~tags.bool()


@torch.no_grad()
def photo_scores(
    classifier: Tensor,
    layer: CongenericPropagation,
    features: Features,
    grid: int | None = None,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> Tensor:
    r"""Return how much of every class a photo shows, whatever its tags.

    The probabilities of the classifier at all positions, every class and the background allowed,
    travel within the photo; the score is the mean of their largest tenth.

    Args:
        classifier (torch.Tensor): Weights :obj:`[K + 1, C + 1]` of
            :func:`~pgnn_geo.labels.position_classifier.fit_position_classifier`.
        layer (CongenericPropagation): Propagates within each photo.
        features (Features): Features of :math:`M` photos, squares.
        grid, device: See :func:`~pgnn_geo.labels.propagation.photo_graphs`.
        ranks (Ranks): The processes that share the photos. (default: this one alone)

    Returns:
        Scores :obj:`[M, K]`, on the CPU.
    """
    count = len(classifier) - 1
    every = torch.ones(len(features), count, dtype=torch.bool)
    parts = [torch.empty(0, count)]
    for block in own_blocks(features, ranks):
        for graphs in photo_graphs(features, every, grid, device, block):
            unit = centered_unit(graphs.x, layer.mean)
            seen = position_maps(classifier, unit, graphs.tags)
            seen = layer(seen, graphs.x, batch=graphs.batch.batch)
            seen = seen.unflatten(0, (len(graphs.photos), -1))  # [b, n, K]
            most = max(1, round(_SHOWN * seen.size(1)))
            parts.append(seen.topk(most, dim=1).values.mean(dim=1).cpu())
    return ranks.cat(torch.cat(parts))
