"""What a training is for, and what it is trained from."""

from typing import Protocol

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.nn.backbones import BackboneName, resolve_weights


class NetworkChoice(Protocol):
    """A backbone and where its weights come from."""

    @property
    def backbone(self) -> BackboneName:  # noqa: D102
        ...

    @property
    def weights(self) -> str | None:  # noqa: D102
        ...


class Job(Protocol):
    """A training of a network on tagged photos."""

    @property
    def data(self) -> DataConfig:  # noqa: D102
        ...

    @property
    def network(self) -> NetworkChoice:  # noqa: D102
        ...


def ledger_of(config: Job, dataset: TaggedDataset) -> SupervisionLedger:
    """Return what a run of :obj:`config` is trained from."""
    entry = resolve_weights(config.network.backbone, config.network.weights)
    source = getattr(dataset, "tag_source", "given")
    return SupervisionLedger(
        tags=f"{source} ({config.data.name})",
        weights=None if entry is None else str(entry),
    )
