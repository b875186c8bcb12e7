"""What is known of pretrained weights, and how they are read; nothing is unpickled."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Never

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from pgnn_geo.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: What the training of weights is called where nobody says what it was.
NOT_STATED = "not stated"

_ENDINGS = (".pth", ".pt", ".bin", ".safetensors")
#: Under which files keep the tensors if they hold more than those.
_WRAPPERS = ("state_dict", "model")


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights of a backbone, and what must be known to use them and to say what was used.

    Args:
        name (str): What they are called.
        load (callable): Returns their state dict.
        trained_on (str): What they were trained on, as the supervision ledger says it: labels,
            pairs of images and text, or images alone. (default: :obj:`"not stated"`)
        licence (str): Their licence. (default: :obj:`"not stated"`)
        mean, std (tuple): Per-channel mean and standard deviation, for images in :math:`[0, 1]`, of
            what they were trained on. (default: those of ImageNet)
        scale (float): See :class:`~pgnn_geo.nn.Backbone`. (default: :obj:`1.0`)
    """

    name: str
    load: Callable[[], dict[str, Tensor]] = field(repr=False, compare=False)
    trained_on: str = NOT_STATED
    licence: str = NOT_STATED
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.name} (trained on: {self.trained_on}; licence: {self.licence})"


def torchvision_weights(entry: WeightsEnum, scale: float = 1.0) -> PretrainedWeights:
    """Describe weights of torchvision by what it says of them."""
    preset, meta = entry.transforms(), entry.meta
    trained_on = "ImageNet-1k labels" if "IMAGENET1K" in entry.name else NOT_STATED
    if "SWAG" in entry.name:
        trained_on = f"hashtags of Instagram, then {trained_on}"

    def load() -> dict[str, Tensor]:
        try:
            return dict(entry.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except (
            OSError,
            RuntimeError,
        ) as error:  # URLError is an OSError; a bad hash a RuntimeError
            raise InputError(
                f"Pretrained weights {entry} could not be loaded ({error}). Put the file "
                f"{_filename(entry)!r} into {torch.hub.get_dir()}/checkpoints (TORCH_HOME chooses "
                "the folder), connect to the network, pass a file's path as weights, or pass "
                "weights=None to start from random weights."
            ) from error

    licence = meta.get("license", NOT_STATED)
    mean, std = tuple(preset.mean), tuple(preset.std)
    return PretrainedWeights(str(entry), load, trained_on, licence, mean, std, scale)


def _filename(entry: WeightsEnum) -> str:
    return str(entry.url).rsplit("/", 1)[-1]


def is_file(weights: str) -> bool:
    """Whether :obj:`weights` names a file, not weights by their name."""
    return weights.endswith(_ENDINGS) or os.sep in weights


def file_weights(
    path: str | os.PathLike[str], usual: PretrainedWeights, known: Iterable[WeightsEnum] = ()
) -> PretrainedWeights:
    """Describe the weights in a file, by its header if it is one of safetensors.

    The entries :obj:`trained_on`, :obj:`licence`, :obj:`mean` and :obj:`std` of the header, the
    last two as JSON lists, say what they are; without them nothing is known of the training, and
    photos are normalised as for :obj:`usual`.

    Args:
        path (str or PathLike): The file: safetensors, or what :func:`torch.save` made of tensors.
        usual (PretrainedWeights): The weights that the backbone has by default.
        known (iterable of WeightsEnum): Weights of torchvision, whose files are recognised by the
            digest in their name. (default: none)

    Raises:
        InputError: If there is no such file, or its header is no such.
    """
    file = Path(path)
    try:
        with open(file, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"weights {os.fspath(path)!r} cannot be read: {error}") from error
    for entry in known:
        stem, _, start = _filename(entry).removesuffix(".pth").rpartition("-")
        if stem and len(start) == 8 and digest.startswith(start):
            return replace(torchvision_weights(entry, usual.scale), load=lambda: read_state(file))
    header: Mapping[str, str] = {}
    if file.suffix == ".safetensors":
        with _safetensors(file) as tensors:
            header = tensors.metadata() or {}
    try:
        mean, std = (
            tuple(float(value) for value in json.loads(header[name]))
            if name in header
            else getattr(usual, name)
            for name in ("mean", "std")
        )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean {mean}, std {std}: want three numbers each")
    except (TypeError, ValueError) as error:
        raise InputError(f"the header of {file} cannot be used: {error}") from error
    return PretrainedWeights(
        f"{file.name}, sha256 {digest[:12]}",
        lambda: read_state(file),
        header.get("trained_on", NOT_STATED),
        header.get("licence", NOT_STATED),
        mean,
        std,
        usual.scale,
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, whatever trainers have wrapped around them.

    Raises:
        InputError: If it is damaged or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        with _safetensors(path) as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(
            f"weights {path} cannot be read as tensors alone, and nothing else is ({error}). Save "
            "the state dict by torch.save(model.state_dict(), ...) or as safetensors."
        ) from error
    for name in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"weights {path}: want a state dict, names and tensors")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise InputError(
            f"{path} needs the package safetensors: pip install 'pgnn-geo[train]'"
        ) from None
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights {path} cannot be read as safetensors: {error}") from error


def load_trunk(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict that holds every tensor of a module; what else it holds is left out.

    Args:
        module (torch.nn.Module): The module, for example without the classifier of the weights.
        state (mapping): The tensors by name.

    Raises:
        InputError: If a tensor is missing or of another shape.
    """
    own = module.state_dict()
    # PyTorch's own older files have no counters of batches, which nothing here reads.
    wrong = [
        f"{name} is {'missing' if name not in state else tuple(state[name].shape)}"
        for name, value in own.items()
        if (name not in state and not name.endswith("num_batches_tracked"))
        or (name in state and state[name].shape != value.shape)
    ]
    if wrong:
        raise InputError(
            f"the weights do not fit: of {len(own)} tensors {len(wrong)} are missing or of another "
            f"shape, such as {', '.join(wrong[:3])}"
        )
    module.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def no_names(name: str) -> Never:
    """What an entry without weights of a name says.

    Raises:
        InputError: Always.
    """
    raise InputError(f"there are no weights {name!r} for it: want a file's path, or None")
