"""How class evidence on frozen features is fitted and passed on."""

from dataclasses import dataclass
from typing import Literal

from pgnn_geo.errors import InputError
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
