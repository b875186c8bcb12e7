"""The one format of models: a folder of ``config.json`` and ``model.safetensors``, no pickle."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_folder, parse_json, write_json

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"

ModelKind = Literal[
    "segmenter", "evidence model", "attention model", "weak detector", "box adjuster"
]

#: Versions of the format, by what the folder holds.
VERSIONS: dict[ModelKind, int] = {
    "segmenter": 1,
    "evidence model": 2,
    "attention model": 3,
    "weak detector": 2,
    "box adjuster": 2,
}

#: Versions that were one file of :func:`torch.save`, up to 0.2.0; such files are still read.
_ONE_FILE: dict[ModelKind, int] = {"attention model": 2, "weak detector": 1, "box adjuster": 1}


def write_model_folder(
    folder: str | os.PathLike[str],
    kind: ModelKind,
    state: Mapping[str, Tensor],
    values: Mapping[str, Any],
    card: str | None = None,
) -> None:
    """Write a folder that is there complete or not at all; one that stood there is replaced.

    Args:
        folder (str or PathLike): The folder.
        kind (str): What it holds.
        state (mapping): The tensors.
        values (mapping): JSON values, which :obj:`config.json` has beside the name of the format
            and the digest of the tensors' file.
        card (str, optional): Text of a :obj:`README.md`.

    Raises:
        InputError: If the folder holds other files, cannot be written, or the package
            :obj:`safetensors` is missing.
    """
    safetensors, folder = import_safetensors(), Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        if folder.exists() and {path.name for path in folder.iterdir()} - {WEIGHTS, CONFIG, CARD}:
            raise InputError(f"{folder} holds other files; choose another folder.")
        with atomic_folder(folder) as temporary:
            safetensors.torch.save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
            digest = sha256_of(temporary / WEIGHTS)
            write_json(temporary / CONFIG, {"format": _form(kind), **values, "sha256": digest})
            if card is not None:
                (temporary / CARD).write_text(card, encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder} cannot be written: {error}") from error


def read_model_folder(
    folder: str | os.PathLike[str], kind: ModelKind
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_model_folder` wrote; nothing is unpickled.

    Of the single files that versions up to 0.2.0 wrote, only tensors and plain values are.

    Args:
        folder (str or PathLike): The folder.
        kind (str): What it must hold.

    Raises:
        InputError: If a file is missing, damaged, of another kind or version, or not the other's.
    """
    folder = Path(folder)
    if folder.is_file():
        return _read_file(folder, kind)
    if not folder.exists():
        raise InputError(f"There is no model {folder}; want the folder of {_a(kind)}.")
    safetensors = import_safetensors()
    try:
        values = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
        digest, state = sha256_of(folder / WEIGHTS), safetensors.torch.load_file(folder / WEIGHTS)
    except OSError as error:
        raise InputError(f"{folder} is not the whole folder of {_a(kind)}: {error}") from error
    except (ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder} cannot be read as {_a(kind)}: {error}") from error
    _check_form(folder, kind, values, _form(kind))
    if digest != values.get("sha256"):
        raise InputError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} describes; copy both again."
        )
    return state, values


def _read_file(path: Path, kind: ModelKind) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a model of before there were folders, with what it is called in them."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(f"{path} cannot be read as {_a(kind)}: {error}") from error
    old = _ONE_FILE.get(kind)
    _check_form(path, kind, content, _form(kind) if old is None else f"pgnn_geo {kind} {old}")
    with fitting_content(path):
        names = {"config": "network", "ledger": "supervision"}
        values = {names.get(name, name): value for name, value in content.items()}
        return values.pop("state_dict"), values


def model_kind(path: str | os.PathLike[str]) -> str | None:
    """Return which kind a folder says it is; :obj:`None` if it says nothing, or is no folder."""
    try:
        form = parse_json((Path(path) / CONFIG).read_text(encoding="utf-8"))["format"]
        return str(form).removeprefix("pgnn_geo ").rpartition(" ")[0]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_digest(path: str | os.PathLike[str]) -> str:
    """Return what stands for a model in records: a digest, of its weights and values."""
    path = Path(path)
    return sha256_of(path if path.is_file() else path / CONFIG)  # which has that of the weights


@contextmanager
def fitting_content(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what building a model from a folder's content raises into one error about the folder."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError) and str(path) in str(error):
            raise
        raise InputError(f"{path} does not fit this version of the package: {error!r}") from error


def load_tensors(
    module: nn.Module, state: Mapping[str, Tensor], folder: str | os.PathLike[str]
) -> None:
    """Put tensors that were read from a folder into a module, which may be on the meta device.

    Raises:
        InputError: If a name, a shape or a type is another one.
    """
    wanted = {k: f"{v.dtype} {[*v.shape]}" for k, v in module.state_dict().items()}
    found = {k: f"{v.dtype} {[*v.shape]}" for k, v in state.items()}
    names = [*wanted, *(found.keys() - wanted.keys())]
    if wrong := [name for name in names if wanted.get(name) != found.get(name)]:
        name = wrong[0]
        raise InputError(
            f"the tensors of {folder} do not fit the network of its {CONFIG}: {len(wrong)} differ, "
            f"such as {name}: {found.get(name, 'missing')} there, {wanted.get(name, 'none')} wanted"
        )
    module.load_state_dict(state, assign=any(v.is_meta for v in module.state_dict().values()))


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


def _form(kind: ModelKind) -> str:
    return f"pgnn_geo {kind} {VERSIONS[kind]}"


def _a(kind: ModelKind) -> str:
    return f"{'an' if kind[0] in 'ae' else 'a'} {kind}"


def _check_form(path: Path, kind: ModelKind, values: Any, wanted: str) -> None:
    found = values.get("format") if isinstance(values, dict) else None
    if found != wanted:
        raise InputError(
            f"{path} is not {_a(kind)} of this version of the package: its format is {found!r}, "
            f"want {wanted!r}. Models of older versions have to be trained anew."
        )
