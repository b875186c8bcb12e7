"""Segmenters on disk and on the Hugging Face Hub: one folder, no pickle."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_folder, write_json
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.model_card import model_card
from pgnn_geo.io.tensor_folder import check_tensors, import_safetensors, sha256_of
from pgnn_geo.nn.architectures import network_from_config
from pgnn_geo.nn.photo_views import PhotoNetwork
from pgnn_geo.nn.segmentation_network import SegmentationNetwork

_FORMAT = "pgnn_geo segmenter 1"
_WEIGHTS, _CONFIG, _CARD = "model.safetensors", "config.json", "README.md"
_FILES = (_WEIGHTS, _CONFIG, _CARD)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class ModelFolder(NamedTuple):
    """What a folder or an ONNX file holds."""

    network: PhotoNetwork  #: in evaluation mode
    classes: tuple[str, ...]  #: names of its K classes
    ledger: SupervisionLedger  #: what it was trained from
    metrics: dict[str, Any] | None  #: scores, if any
    side: int | None  #: longer side of photos in the network, if they are resized


def write_model_folder(folder: Path, content: ModelFolder) -> None:
    """Write :obj:`model.safetensors`, :obj:`config.json` and the model card, atomically.

    Raises:
        InputError: If the folder holds other files, cannot be written, or :obj:`safetensors` is
            missing.
    """
    safetensors = import_safetensors()
    network, classes, ledger, metrics, side = content
    if not isinstance(network, SegmentationNetwork):
        raise InputError("this segmenter was read from an ONNX file; copy that")
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    try:
        if folder.exists() and {path.name for path in folder.iterdir()} - {*_FILES}:
            raise InputError(f"{folder} holds other files; choose another folder.")
        with atomic_folder(folder) as temporary:
            safetensors.torch.save_file(state, temporary / _WEIGHTS, metadata={"format": "pt"})
            config = {
                "format": _FORMAT,
                "network": network.saved_config,
                "classes": list(classes),
                "supervision": ledger.to_dict(),
                "side": side,
                "metrics": metrics,
                "sha256": sha256_of(temporary / _WEIGHTS),
            }
            write_json(temporary / _CONFIG, config)
            card = model_card(classes, ledger, metrics)
            (temporary / _CARD).write_text(card, encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder} cannot be written: {error}") from error


def read_model_folder(folder: Path) -> ModelFolder:
    """Read a folder that :func:`write_model_folder` wrote; nothing is unpickled.

    Raises:
        InputError: If a file is missing, damaged, of another kind, or does not fit the others.
    """
    safetensors = import_safetensors()
    path = folder / _WEIGHTS
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        digest, state = sha256_of(path), safetensors.torch.load_file(path)
    except OSError as error:
        raise InputError(f"{folder} is not a whole segmenter folder: {error}") from error
    except (ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder} holds no readable segmenter: {error}") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise InputError(f"{folder} is not a segmenter of this package ({_FORMAT!r}).")
    if digest != config.get("sha256"):
        raise InputError(f"{path} is not the file that {_CONFIG} describes; copy both again.")
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes the file asks for
            network = network_from_config(config["network"])
        classes = tuple(str(name) for name in config["classes"])
        if len(classes) != network.num_classes:
            raise ValueError(f"{len(classes)} names for {network.num_classes} classes")
        ledger = SupervisionLedger.from_dict(config["supervision"])
        side = None if config["side"] is None else int(config["side"])
        content = ModelFolder(network, classes, ledger, config["metrics"], side)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{folder / _CONFIG} does not fit this version: {error!r}") from error
    check_tensors(path, state, network, _CONFIG)
    network.load_state_dict(state, assign=True)
    network.eval()
    return content


def find_model_folder(path: str, revision: str | None = None) -> Path:
    """Return the folder at :obj:`path`, or that of the Hub's repository of this name.

    Raises:
        InputError: If there is neither.
    """
    if Path(path).is_dir():
        return Path(path)
    if not _HUB_ID.fullmatch(path):
        raise InputError(f"There is no segmenter folder {path}.")
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise InputError(
            f"There is no segmenter folder {path}. To look for it on the Hugging Face Hub: "
            "pip install 'pgnn-geo[hub]'"
        ) from error
    try:
        found = huggingface_hub.snapshot_download(
            path, revision=revision, allow_patterns=list(_FILES)
        )
    except Exception as error:  # the Hub's own, the network's: they share no base class
        raise InputError(
            f"There is no folder {path}, and the Hub has it not either: {error}"
        ) from error
    return Path(found)


def push_model_folder(
    folder: Path, repo_id: str, private: bool | None, message: str, revision: str | None
) -> str:
    """Upload a folder to the Hub and return the commit's address.

    Raises:
        InputError: If :obj:`huggingface_hub` is missing, or the Hub refuses.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise InputError("The Hub needs huggingface_hub: pip install 'pgnn-geo[hub]'") from error
    try:
        huggingface_hub.create_repo(repo_id, private=private, exist_ok=True)
        commit = huggingface_hub.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision
        )
    except Exception as error:  # as above
        raise InputError(f"{repo_id} could not be pushed to the Hub: {error}") from error
    return str(commit.commit_url)
