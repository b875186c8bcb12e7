r"""Evidence of classes from image tags alone: a convex fit on the mean features of photos."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.labels.minimise import minimise


class TagEvidence(NamedTuple):
    """A linear classifier of features by tag."""

    weight: Tensor  #: :math:`(K, C)`
    bias: Tensor  #: :math:`(K)`


def fit_tag_evidence(
    features: Tensor, tags: Tensor, penalty: float = 1e-6, known: Tensor | None = None
) -> TagEvidence:
    r"""Fit one logistic regression per class to the mean features of photos.

    .. math::
        \min_{\mathbf{W}, \mathbf{b}} \; \frac{1}{M} \sum_{i=1}^{M} \sum_{k=1}^{K} \log \bigl( 1 +
        e^{-t_{ik} (\mathbf{w}_k^\top \mathbf{x}_i + b_k)} \bigr) + \frac{\lambda}{2} \bigl(
        \lVert \mathbf{W} \rVert^2 + \lVert \mathbf{b} \rVert^2 \bigr), \qquad t_{ik} = \pm 1

    The problem is strictly convex: there is one minimum, which L-BFGS finds in float64 without a
    draw. As mean and product commute, :math:`\mathrm{ReLU}(\mathbf{w}_k^\top \mathbf{x})` at a
    position is the class activation map of this classifier.

    Args:
        features (torch.Tensor): The mean features of the photos, centred.
        tags (torch.Tensor): Their multi-hot tags.
        penalty (float): :math:`\lambda`, positive. (default: :obj:`1e-6`)
        known (torch.Tensor, optional): Pairs of photo and class that the sum is over, bool; all by
            default.

    Shapes:
        - **features:** :math:`(M, C)`
        - **tags, known:** :math:`(M, K)`
        - **output:** weight :math:`(K, C)` and bias :math:`(K)`, float32

    Raises:
        InputError: If shapes disagree, :obj:`penalty` is not positive, or all photos have a tag:
            nothing then tells its objects from what is around them.
    """
    if features.dim() != 2 or tags.dim() != 2 or len(features) != len(tags):
        raise InputError(
            f"features {tuple(features.shape)} and tags {tuple(tags.shape)}: want [M, C] and [M, K]"
        )
    if penalty <= 0:
        raise InputError(f"penalty={penalty}: want more than 0")
    check_tags(tags)
    return _fit(features, tags, penalty, known)


def held_out_probabilities(
    features: Tensor, tags: Tensor, penalty: float = 1e-6, folds: int = 5
) -> Tensor:
    """Return how likely each tag is by a fit of :func:`fit_tag_evidence` to other photos alone.

    Args:
        features, tags, penalty: See :func:`fit_tag_evidence`.
        folds (int): Parts, each of every so-manieth photo, of which one is left out at a time.
            (default: :obj:`5`)

    Returns:
        Probabilities :obj:`[M, K]`, float32.
    """
    part = torch.arange(len(tags)) % folds
    found = torch.empty(tags.shape)
    for fold in range(min(folds, len(tags))):
        out = part == fold
        weight, bias = _fit(features[~out], tags[~out], penalty)
        found[out] = (features[out] @ weight.t() + bias).sigmoid()
    return found


def _fit(
    features: Tensor, tags: Tensor, penalty: float, known: Tensor | None = None
) -> TagEvidence:
    x, t = features.double(), 2 * tags.double() - 1
    shape = (tags.size(1), features.size(1) + 1)
    counted = torch.ones_like(t) if known is None else known.to(t)

    def loss(parameters: Tensor) -> Tensor:
        w = parameters.view(shape)
        margin = t * (x @ w[:, :-1].t() + w[:, -1])
        return (counted * F.softplus(-margin)).sum() / len(x) + penalty / 2 * w.square().sum()

    w = minimise(loss, x.new_zeros(shape).flatten()).view(shape).float()
    return TagEvidence(w[:, :-1].contiguous(), w[:, -1].contiguous())


def check_tags(tags: Tensor) -> None:
    """Raise an :class:`InputError` if nothing can be learned from multi-hot tags :obj:`[M, K]`."""
    if (everywhere := tags.bool().all(dim=0)).any():
        raise InputError(
            f"All {len(tags)} photos have the tag of class {int(everywhere.nonzero()[0]) + 1}: "
            "nothing tells its objects from what is around them. Add photos without it."
        )
