"""What a training is for, and what it is trained from."""

from dataclasses import dataclass
from typing import Protocol

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.nn.backbones import BackboneName, resolve_weights
from pgnn_geo.nn.backbones.weights import PretrainedWeights


class NetworkChoice(Protocol):
    """A network and where the weights that it starts from come from."""

    @property
    def trunk(self) -> str:
        """What the weights are of, as people call it."""
        ...

    def pretrained(self) -> PretrainedWeights | None:
        """Return what is known of the weights; nothing is loaded.

        Raises:
            InputError: If they, or what they are for, are unknown.
        """
        ...


@dataclass(frozen=True)
class BackboneChoice:
    """The :class:`NetworkChoice` of a configuration that names a backbone and its weights."""

    backbone: BackboneName
    weights: str | None

    @property
    def trunk(self) -> str:
        """The backbone."""
        return self.backbone

    def pretrained(self) -> PretrainedWeights | None:
        """See :meth:`NetworkChoice.pretrained`."""
        return resolve_weights(self.backbone, self.weights)


def ledger_of(network: NetworkChoice, dataset: TaggedDataset, name: str) -> SupervisionLedger:
    """Return what is learned from on tagged photos.

    Args:
        network (NetworkChoice): Whose weights training starts from, or who makes the features.
        dataset (TaggedDataset): The photos.
        name (str): What they are called, see :attr:`DataConfig.name
            <pgnn_geo.datasets.config.DataConfig.name>`.
    """
    entry = network.pretrained()
    source = getattr(dataset, "tag_source", "given")
    return SupervisionLedger(
        tags=f"{source} ({name})", weights=None if entry is None else str(entry)
    )
