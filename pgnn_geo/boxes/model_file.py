"""Files of detectors and box adjusters: weights, configuration and what they were made from."""

import os
from typing import NamedTuple

from pgnn_geo.boxes.adjuster import BoxAdjuster
from pgnn_geo.boxes.weak_detector import WeakDetector
from pgnn_geo.io.checkpoint import fitting_content, read_model_file, write_model_file
from pgnn_geo.io.ledger import SupervisionLedger

_DETECTOR, _ADJUSTER = "pgnn_geo weak detector 1", "pgnn_geo box adjuster 1"


class DetectorFile(NamedTuple):
    """A detector as it was trained."""

    model: WeakDetector  #: in evaluation mode
    classes: tuple[str, ...]  #: names of its K classes
    ledger: SupervisionLedger  #: what it was trained from


class AdjusterFile(NamedTuple):
    """A box adjuster as it was trained."""

    model: BoxAdjuster  #: in evaluation mode
    ledger: SupervisionLedger  #: what it was trained from


def save_detector(
    path: str | os.PathLike[str],
    model: WeakDetector,
    classes: tuple[str, ...],
    ledger: SupervisionLedger,
) -> None:
    """Write a detector so that :func:`load_detector` needs nothing else, atomically."""
    write_model_file(path, _DETECTOR, model, model.config, ledger, classes=list(classes))


def load_detector(path: str | os.PathLike[str]) -> DetectorFile:
    """Read a detector's file; only tensors and plain values are unpickled.

    Raises:
        InputError: If the file is missing, damaged, or not such a model.
    """
    content = read_model_file(path, _DETECTOR, "a detector")
    with fitting_content(path):
        model = WeakDetector.from_config(content["config"])
        model.load_state_dict(content["state_dict"])
        ledger = SupervisionLedger.from_dict(content["ledger"])
        return DetectorFile(model.eval(), tuple(content["classes"]), ledger)


def save_adjuster(
    path: str | os.PathLike[str], model: BoxAdjuster, ledger: SupervisionLedger
) -> None:
    """Write a box adjuster so that :func:`load_adjuster` needs nothing else, atomically."""
    write_model_file(path, _ADJUSTER, model, model.config, ledger)


def load_adjuster(path: str | os.PathLike[str]) -> AdjusterFile:
    """Read a box adjuster's file; only tensors and plain values are unpickled.

    Raises:
        InputError: If the file is missing, damaged, or not such a model.
    """
    content = read_model_file(path, _ADJUSTER, "a box adjuster")
    with fitting_content(path):
        model = BoxAdjuster.from_config(content["config"])
        model.load_state_dict(content["state_dict"])
        return AdjusterFile(model.eval(), SupervisionLedger.from_dict(content["ledger"]))
