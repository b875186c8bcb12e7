r"""Evidence of classes: how it is fitted and passed on, and what begins it, a fit to image tags."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.labels.minimise import minimise
from pgnn_geo.nn.kernels import KERNELS

#: The steps whose maps can be asked for.
StepName = Literal["evidence", "prototypes", "classifier"]


@dataclass(frozen=True)
class EvidenceConfig:
    r"""How class evidence is fitted and passed on.

    Args:
        whitening (float, optional): Ridge of the :class:`~pgnn_geo.features.Whitening` that
            features go through first; none by default, as features of ImageNet lose by it.
        evidence_penalty (float): See :func:`~pgnn_geo.labels.evidence.fit_tag_evidence`.
        evidence_window (int): Side of the window, in positions, over which the evidence of the tags
            is averaged before prototypes learn from it, odd; 1 leaves it as it is.
        threshold (float): See :class:`~pgnn_geo.nn.ClassPrototypes`.
        power, kernel: See :class:`~pgnn_geo.nn.CongenericPropagation`.
        foreground, background (float): What the classifier of positions learns from, see
            :func:`~pgnn_geo.labels.position_classifier.confident_labels`.
        penalty, partial, balance, iterations (float): See
            :func:`~pgnn_geo.labels.position_classifier.fit_position_classifier`.
        positions (int): The most positions that it learns from, spread evenly over the photos.
        prototype_rounds (int): Times that prototypes are made: from the evidence of the tags, then
            from the maps of those before.
        classifier_rounds (int): Times that the classifier is trained: on the maps of the
            prototypes, then on those of the classifier before. With 0 there is none, and the last
            step are the prototypes.
        warm_start (bool): Whether a round begins with the weights of the one before.
        objectness (bool): Whether prototypes and classifier learn only from positions that are
            objects to the other classes, see :mod:`pgnn_geo.labels.objectness`.
        absence (float, optional): For photos of which some tags are missing: the share of the
            photos with a class's tag than which a photo without it must look more like the class
            for its absence not to be believed, see :mod:`pgnn_geo.labels.absence`. Such absence is
            nothing that is learned from, and such a photo is labelled with the class as well. By
            default tags are complete.
        confidence (float): What of a class's largest probability in a photo stays in the maps, see
            :func:`~pgnn_geo.labels.propagation.complete`.
        grid (int, optional): The most patches per side of a photo's graph; single positions by
            default.
        fit_grid (int, optional): The most patches per side of the graphs that all this is fitted
            on; those of :obj:`grid` if not given, on which maps are made.

    Raises:
        InputError: If a value is out of range, or there is no such kernel.
    """

    whitening: float | None = None
    evidence_penalty: float = 1e-6
    evidence_window: int = 1
    threshold: float = 0.5
    power: float = 2.0
    foreground: float = 0.55
    background: float = 0.25
    penalty: float = 1e-4
    partial: float = 0.3
    balance: float = 0.5
    iterations: int = 100
    positions: int = 32768
    prototype_rounds: int = 2
    classifier_rounds: int = 3
    warm_start: bool = False
    objectness: bool = False
    absence: float | None = None
    confidence: float = 0.0
    grid: int | None = None
    fit_grid: int | None = None
    kernel: str = "cosine"

    def __post_init__(self) -> None:
        KERNELS[self.kernel]  # which raises if there is none
        counts = {
            "prototype_rounds": self.prototype_rounds,
            "evidence_window": self.evidence_window,
            "positions": self.positions,
            "fit_grid": 1 if self.fit_grid is None else self.fit_grid,
        }
        if wrong := [f"{name}={value}" for name, value in counts.items() if value < 1]:
            raise InputError(f"{', '.join(wrong)}: want 1 or more")
        if self.evidence_window % 2 == 0:
            raise InputError(f"evidence_window={self.evidence_window}: want an odd number")
        if self.classifier_rounds < 0:
            raise InputError(f"classifier_rounds={self.classifier_rounds}: want 0 or more")
        if self.whitening is not None and self.whitening <= 0:
            raise InputError(f"whitening={self.whitening}: want more than 0, or none")
        if self.absence is not None and not 0 < self.absence < 1:
            raise InputError(f"absence={self.absence}: want more than 0 and less than 1, or none")
        if self.absence is not None and not self.classifier_rounds:
            raise InputError(
                f"absence={self.absence} is judged by the classifier: want classifier_rounds of 1 "
                "or more"
            )
        if not 0 <= self.confidence <= 1:
            raise InputError(f"confidence={self.confidence}: want 0 to 1")

    @property
    def last_step(self) -> StepName:
        """The step whose maps the labels are made from."""
        return "classifier" if self.classifier_rounds else "prototypes"


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
