"""Tensors and plain values in one folder, ``model.safetensors`` and ``config.json``: no pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_folder, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_tensor_folder(
    folder: Path, form: str, state: dict[str, Tensor], values: dict[str, Any]
) -> None:
    """Write a folder that is there complete or not at all; one that stood there is replaced.

    Args:
        folder (Path): The folder.
        form (str): Name of the format.
        state (dict): The tensors.
        values (dict): JSON values.

    Raises:
        InputError: If the folder holds other files, cannot be written, or the package
            :obj:`safetensors` is missing.
    """
    safetensors = import_safetensors()
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        if folder.exists() and {path.name for path in folder.iterdir()} - {WEIGHTS, CONFIG}:
            raise InputError(f"{folder} holds other files; choose another folder.")
        with atomic_folder(folder) as temporary:
            safetensors.torch.save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})
            digest = sha256_of(temporary / WEIGHTS)
            write_json(temporary / CONFIG, {"format": form, **values, "sha256": digest})
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder} cannot be written: {error}") from error


def read_tensor_folder(
    folder: Path, form: str, kind: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensor_folder` wrote.

    Args:
        folder (Path): The folder.
        form (str): Name of the format that it must have.
        kind (str): What that is, for the error.

    Raises:
        InputError: If a file is missing, damaged, of another format, or not the other's.
    """
    safetensors = import_safetensors()
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        digest, state = sha256_of(folder / WEIGHTS), safetensors.torch.load_file(folder / WEIGHTS)
    except OSError as error:
        raise InputError(f"{folder} is not the whole folder of {kind}: {error}") from error
    except (ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder} cannot be read as {kind}: {error}") from error
    if not isinstance(values, dict) or values.get("format") != form:
        raise InputError(f"{folder} is not {kind} of this version of the package ({form!r}).")
    if digest != values.get("sha256"):
        raise InputError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} describes; copy both again."
        )
    return state, values


def load_tensors(module: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Put tensors that were read from a folder into a module.

    Raises:
        InputError: If a name, a shape or a type is another one.
    """
    check_tensors(folder / WEIGHTS, state, module, CONFIG)
    module.load_state_dict(state)


def check_tensors(path: Path, state: dict[str, Tensor], module: nn.Module, config: str) -> None:
    """Raise unless the tensors of a file are those of the module that `config` describes.

    Raises:
        InputError: If a name, a shape or a type is another one.
    """
    wanted = {k: f"{v.dtype} {[*v.shape]}" for k, v in module.state_dict().items()}
    found = {k: f"{v.dtype} {[*v.shape]}" for k, v in state.items()}
    names = [*wanted, *(found.keys() - wanted.keys())]
    if wrong := [name for name in names if wanted.get(name) != found.get(name)]:
        name = wrong[0]
        raise InputError(
            f"{path} does not fit the network of {config}: {len(wrong)} tensor(s) differ, such as "
            f"{name}: {found.get(name, 'missing')} there, {wanted.get(name, 'none')} wanted"
        )


def sha256_of(path: Path) -> str:
    """The digest of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def import_safetensors() -> Any:
    """The package, or an error that says how to get it."""
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise InputError("Models need safetensors: pip install 'pgnn-geo[train]'") from error
    return safetensors
