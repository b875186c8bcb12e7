"""Detectors and box adjusters as folders, with what they were made from."""

import os
from typing import NamedTuple

from pgnn_geo.boxes.adjuster import BoxAdjuster
from pgnn_geo.boxes.weak_detector import WeakDetector
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.model_folder import (
    fitting_content,
    load_tensors,
    read_model_folder,
    write_model_folder,
)


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
    values = {
        "network": model.config,
        "classes": list(classes),
        "supervision": ledger.to_dict(),
    }
    write_model_folder(path, "weak detector", model.state_dict(), values)


def load_detector(path: str | os.PathLike[str]) -> DetectorFile:
    """Read a detector's folder, or its file of a version up to 0.2.0.

    Raises:
        InputError: If it is missing, damaged, or not such a model.
    """
    state, values = read_model_folder(path, "weak detector")
    with fitting_content(path):
        model = WeakDetector.from_config(values["network"])
        load_tensors(model, state, path)
        ledger = SupervisionLedger.from_dict(values["supervision"])
        return DetectorFile(model.eval(), tuple(str(name) for name in values["classes"]), ledger)


def save_adjuster(
    path: str | os.PathLike[str], model: BoxAdjuster, ledger: SupervisionLedger
) -> None:
    """Write a box adjuster so that :func:`load_adjuster` needs nothing else, atomically."""
    values = {"network": model.config, "supervision": ledger.to_dict()}
    write_model_folder(path, "box adjuster", model.state_dict(), values)


def load_adjuster(path: str | os.PathLike[str]) -> AdjusterFile:
    """Read a box adjuster's folder, or its file of a version up to 0.2.0.

    Raises:
        InputError: If it is missing, damaged, or not such a model.
    """
    state, values = read_model_folder(path, "box adjuster")
    with fitting_content(path):
        model = BoxAdjuster.from_config(values["network"])
        load_tensors(model, state, path)
        return AdjusterFile(model.eval(), SupervisionLedger.from_dict(values["supervision"]))
