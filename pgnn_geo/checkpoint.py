"""Model files: weights, configuration, class names and supervision ledger in one safe file."""

import os
from pathlib import Path
from typing import NamedTuple

import torch

from pgnn_geo.errors import InputError
from pgnn_geo.files import atomic_write
from pgnn_geo.ledger import SupervisionLedger
from pgnn_geo.nn import PGNN

_FORMAT = "pgnn_geo attention model 1"


class AttentionCheckpoint(NamedTuple):
    """A stage-1 model as it was trained."""

    model: PGNN  #: in evaluation mode
    classes: tuple[str, ...]  #: names of its K classes
    ledger: SupervisionLedger  #: what it was trained from


def save_attention_model(
    path: str | os.PathLike[str], model: PGNN, classes: tuple[str, ...], ledger: SupervisionLedger
) -> None:
    """Write a model so that :func:`load_attention_model` needs nothing else, atomically."""
    content = {
        "format": _FORMAT,
        "config": model.config,
        "classes": list(classes),
        "ledger": ledger.to_dict(),
        "state_dict": model.state_dict(),
    }
    with atomic_write(path) as handle:
        torch.save(content, handle)


def load_attention_model(path: str | os.PathLike[str]) -> AttentionCheckpoint:
    """Read a model file; only tensors and plain values are unpickled.

    Raises:
        InputError: If the file is missing, damaged, or not such a model.
    """
    try:
        content = torch.load(Path(path), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"There is no model file {path}; train one first.") from error
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(f"{path} is not a readable model file: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"{path} is not an attention model of this package ({_FORMAT!r}).")
    try:
        model = PGNN(**{**content["config"], "weights": None})
        model.load_state_dict(content["state_dict"])
        model.backbone.frozen_norm = content["config"]["weights"] is not None
        model.config = dict(content["config"])
        ledger = SupervisionLedger.from_dict(content["ledger"])
        classes = tuple(content["classes"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} does not fit this version of the package: {error}") from error
    return AttentionCheckpoint(model.eval(), classes, ledger)
