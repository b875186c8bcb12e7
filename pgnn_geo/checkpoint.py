"""Model files: weights, configuration, class names and supervision ledger in one safe file."""

import os
from pathlib import Path
from typing import Any, NamedTuple

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
        "config": model.config,
        "classes": list(classes),
        "ledger": ledger.to_dict(),
        "state_dict": model.state_dict(),
    }
    write_model_file(path, _FORMAT, content)


def load_attention_model(path: str | os.PathLike[str]) -> AttentionCheckpoint:
    """Read a model file; only tensors and plain values are unpickled.

    Raises:
        InputError: If the file is missing, damaged, or not such a model.
    """
    content = read_model_file(path, _FORMAT, "an attention model")
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


def write_model_file(path: str | os.PathLike[str], form: str, content: dict[str, Any]) -> None:
    """Write tensors and plain values with the name of their format, atomically."""
    with atomic_write(path) as handle:
        torch.save({"format": form, **content}, handle)


def read_model_file(path: str | os.PathLike[str], form: str, kind: str) -> dict[str, Any]:
    """Read what :func:`write_model_file` wrote; only tensors and plain values are unpickled.

    Args:
        path (str or PathLike): The file.
        form (str): The format that it must have.
        kind (str): What that is, for the error.

    Raises:
        InputError: If the file is missing, damaged, or of another format.
    """
    try:
        content = torch.load(Path(path), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"There is no model file {path}; train one first.") from error
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(f"{path} is not a readable model file: {error}") from error
    if not isinstance(content, dict) or content.get("format") != form:
        raise InputError(f"{path} is not {kind} of this package ({form!r}).")
    return content
