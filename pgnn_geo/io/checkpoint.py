"""Model files: weights, configuration, class names and supervision ledger in one safe file."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.nn import PGNN

_FORMAT = "pgnn_geo attention model 2"


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
        path (str or PathLike): The file.
        model (PGNN): The model.
        classes (tuple of str): Names of its classes.
        ledger (SupervisionLedger): What it was trained from.
        labelling (mapping, optional): Plain values: how label images are made with it.
    """
    more = {"classes": list(classes), "labelling": dict(labelling or {})}
    write_model_file(path, _FORMAT, model, model.config, ledger, **more)


def load_attention_model(path: str | os.PathLike[str]) -> AttentionCheckpoint:
    """Read a model file; only tensors and plain values are unpickled.

    Raises:
        InputError: If the file is missing, damaged, or not such a model.
    """
    content = read_model_file(path, _FORMAT, "an attention model")
    with fitting_content(path):
        model = PGNN(**{**content["config"], "weights": None})
        model.load_state_dict(content["state_dict"])
        if content["config"]["weights"] is not None:
            model.backbone.freeze_norms()
        model.config = dict(content["config"])
        ledger = SupervisionLedger.from_dict(content["ledger"])
        classes = tuple(content["classes"])
        labelling = dict(content["labelling"])
    return AttentionCheckpoint(model.eval(), classes, ledger, labelling)


def write_model_file(
    path: str | os.PathLike[str],
    form: str,
    model: nn.Module,
    config: dict[str, Any],
    ledger: SupervisionLedger,
    **more: Any,
) -> None:
    """Write a model and what it was made from with the name of their format, atomically.

    Args:
        path (str or PathLike): The file.
        form (str): The format.
        model (torch.nn.Module): Its weights are written.
        config (dict): What the model is built from, plain values.
        ledger (SupervisionLedger): What it was trained from.
        **more: Further plain values.
    """
    content = {"format": form, "config": config, "ledger": ledger.to_dict(), **more}
    save_tensors(path, {**content, "state_dict": model.state_dict()})


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


@contextmanager
def fitting_content(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what building a model from a file's content raises into one error about the file."""
    try:
        yield
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} does not fit this version of the package: {error}") from error


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
        found = content.get("format") if isinstance(content, dict) else None
        raise InputError(
            f"{path} is not {kind} of this version of the package: its format is {found!r}, want "
            f"{form!r}. Models of older versions have to be trained anew."
        )
    return content
