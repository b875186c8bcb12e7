"""What is looked at before any work is done: the machine, the photos, the weights, their ledger."""

from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import torch

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.nn.backbones import PretrainedWeights
from pgnn_geo.precision import check_devices, resolve_precision


class WeightsSource(Protocol):
    """Where the weights that a network starts from come from: a backbone, or a whole model."""

    @property
    def name(self) -> str:
        """What the weights are of."""
        ...

    def pretrained(self) -> PretrainedWeights | None:
        """Return what is known of the weights; nothing is loaded.

        Raises:
            InputError: If they, or what they are for, are unknown.
        """
        ...


def describe_machine() -> list[str]:
    """Return one line each on the packages, the devices and the precision that fits them."""
    packages = (
        *("torch", "torchvision", "torch-geometric", "torch-scatter", "lightning"),
        *("safetensors", "timm"),
    )
    lines = []
    for package in packages:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} is not installed")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    device = " + ".join(names) or "CPU only"
    lines.append(f"device: {device}, {torch.get_num_threads()} threads")
    return [*lines, f"precision auto: {resolve_precision('auto')}"]


def describe_backbone(source: WeightsSource) -> list[str]:
    """Return what is known of a backbone's weights; nothing if they cannot be found out."""
    try:
        weights = source.pretrained()
    except InputError:  # which find_problems tells
        return []
    if weights is None:
        return [f"backbone: {source.name}, random weights"]
    mean, std = (
        ", ".join(f"{value:.3g}" for value in values) for values in (weights.mean, weights.std)
    )
    return [
        f"backbone: {source.name}, {weights}",
        f"photos are normalised by mean {mean} and standard deviation {std}",
    ]


def find_problems(data: DataConfig | None, source: WeightsSource, devices: int = 1) -> list[str]:
    """Return everything wrong with photos, tags, masks, weights and devices, one line each."""
    problems = []
    try:
        if data is not None:
            problems += data.check()
    except InputError as error:
        problems.append(str(error))
    try:
        if entry := source.pretrained():
            entry.load()
    except InputError as error:
        problems.append(str(error))
    try:
        check_devices(devices)
    except InputError as error:
        problems.append(str(error))
    return problems


def raise_problems(problems: list[str], most: int = 20) -> None:
    """Raise one error that lists all problems, if there are any."""
    if problems:
        rest = f"\n  ... and {len(problems) - most} more" if len(problems) > most else ""
        raise InputError(
            f"{len(problems)} problem(s) found before any work was done:\n  "
            + "\n  ".join(problems[:most])
            + rest
        )


def ledger_of(source: WeightsSource, dataset: TaggedDataset, name: str) -> SupervisionLedger:
    """Return what is learned from on tagged photos.

    Args:
        source (WeightsSource): Of the weights that training starts from, or that make the features.
        dataset (TaggedDataset): The photos.
        name (str): What they are called, see :attr:`DataConfig.name
            <pgnn_geo.datasets.config.DataConfig.name>`.
    """
    entry = source.pretrained()
    tags = getattr(dataset, "tag_source", "given")
    return SupervisionLedger(tags=f"{tags} ({name})", weights=None if entry is None else str(entry))
