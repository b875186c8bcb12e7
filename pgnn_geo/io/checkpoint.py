"""Trained models of stage 1 as folders; checkpoints of trainings."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.model_folder import (
    fitting_content,
    load_tensors,
    read_model_folder,
    write_model_folder,
)
from pgnn_geo.nn import PGNN


class AttentionCheckpoint(NamedTuple):
    """A stage-1 model as it was trained."""

    model: PGNN  #: in evaluation mode
    classes: tuple[str, ...]  #: names of its K classes
    ledger: SupervisionLedger  #: what it was trained from
    labelling: dict[str, Any]  #: plain values: how label images are made with it, if that was said


def save_attention_model(
    path: str | os.PathLike[str],
    model: PGNN,
    classes: tuple[str, ...],
    ledger: SupervisionLedger,
    labelling: Mapping[str, Any] | None = None,
) -> None:
    """Write a model so that :func:`load_attention_model` needs nothing else, atomically.

    Args:
        path (str or PathLike): The folder.
        model (PGNN): The model.
        classes (tuple of str): Names of its classes.
        ledger (SupervisionLedger): What it was trained from.
        labelling (mapping, optional): Plain values: how label images are made with it.
    """
    values = {
        "network": model.config,
        "classes": list(classes),
        "labelling": dict(labelling or {}),
        "supervision": ledger.to_dict(),
    }
    write_model_folder(path, "attention model", model.state_dict(), values)


def load_attention_model(path: str | os.PathLike[str]) -> AttentionCheckpoint:
    """Read a model's folder, or its file of a version up to 0.2.0.

    Raises:
        InputError: If it is missing, damaged, or not such a model.
    """
    state, values = read_model_folder(path, "attention model")
    with fitting_content(path):
        model = PGNN(**{**values["network"], "weights": None})
        load_tensors(model, state, path)
        if values["network"]["weights"] is not None:
            model.backbone.freeze_norms()
        model.config = dict(values["network"])
        ledger = SupervisionLedger.from_dict(values["supervision"])
        classes = tuple(str(name) for name in values["classes"])
        labelling = dict(values["labelling"])
    return AttentionCheckpoint(model.eval(), classes, ledger, labelling)


def save_tensors(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write what :func:`torch.save` takes, atomically.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_write(path) as handle:
        try:
            torch.save(content, handle)
        except RuntimeError as error:  # in whose place torch raises one about its own format
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
