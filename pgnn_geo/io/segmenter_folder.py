"""Segmenters on disk and on the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.model_card import model_card
from pgnn_geo.io.model_folder import (
    CARD,
    CONFIG,
    WEIGHTS,
    fitting_content,
    load_tensors,
    read_model_folder,
    write_model_folder,
)
from pgnn_geo.nn.architectures import network_from_config
from pgnn_geo.nn.photo_views import PhotoNetwork
from pgnn_geo.nn.segmentation_network import SegmentationNetwork

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class SegmenterContent(NamedTuple):
    """What a folder or an ONNX file holds."""

    network: PhotoNetwork  #: in evaluation mode
    classes: tuple[str, ...]  #: names of its K classes
    ledger: SupervisionLedger  #: what it was trained from
    metrics: dict[str, Any] | None  #: scores, if any
    side: int | None  #: longer side of photos in the network, if they are resized


def write_segmenter(folder: Path, content: SegmenterContent) -> None:
    """Write a segmenter and its model card, see :func:`write_model_folder`.

    Raises:
        InputError: If the folder holds other files, cannot be written, or :obj:`safetensors` is
            missing.
    """
    network, classes, ledger, metrics, side = content
    if not isinstance(network, SegmentationNetwork):
        raise InputError("this segmenter was read from an ONNX file; copy that")
    values = {
        "network": network.saved_config,
        "classes": list(classes),
        "supervision": ledger.to_dict(),
        "side": side,
        "metrics": metrics,
    }
    card = model_card(classes, ledger, metrics)
    write_model_folder(folder, "segmenter", network.state_dict(), values, card)


def read_segmenter(folder: Path) -> SegmenterContent:
    """Read a folder that :func:`write_segmenter` wrote; nothing is unpickled.

    Raises:
        InputError: If a file is missing, damaged, of another kind, or does not fit the others.
    """
    state, values = read_model_folder(folder, "segmenter")
    with fitting_content(folder):
        with torch.device("meta"):  # takes no memory, whatever sizes the file asks for
            network = network_from_config(values["network"])
        classes = tuple(str(name) for name in values["classes"])
        if len(classes) != network.num_classes:
            raise ValueError(f"{len(classes)} names for {network.num_classes} classes")
        ledger = SupervisionLedger.from_dict(values["supervision"])
        side = None if values["side"] is None else int(values["side"])
        content = SegmenterContent(network, classes, ledger, values["metrics"], side)
    load_tensors(network, state, folder)
    network.eval()
    return content


def find_segmenter(path: str, revision: str | None = None) -> Path:
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
            path, revision=revision, allow_patterns=[WEIGHTS, CONFIG, CARD]
        )
    except Exception as error:  # the Hub's own, the network's: they share no base class
        raise InputError(
            f"There is no folder {path}, and the Hub has it not either: {error}"
        ) from error
    return Path(found)


def push_segmenter(
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
