"""The soft-complementary loss as an option of stage 1, and the previous epoch's maps it erases."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.labels import AttentionStore
from pgnn_geo.labels.attention_store import PolicyName
from pgnn_geo.losses import SoftComplementaryLoss, SoftComplementaryTerms
from pgnn_geo.nn import PGNN, PGNNOutput
from pgnn_geo.nn.decoder import activate
from pgnn_geo.options import Arguments
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.stems import empty_store, graph_of, photo_view

ComplementaryName = Literal["off", "stable", "paper", "erase"]


#: The arguments of the loss that can be chosen beside its mode, and how a new map joins those of
#: the epochs before (:obj:`policy` and :obj:`momentum`).
COMPLEMENTARY_LOSS = Arguments(
    SoftComplementaryLoss,
    AttentionStore,
    skip=("mode", "average", "path", "image_ids", "sizes", "tags", "stride", "dtype"),
)


def build_loss(
    mode: str, options: Mapping[str, Any], average: Callable[[Tensor], Tensor] | None = None
) -> SoftComplementaryLoss:
    """Build the loss of one of its modes.

    Args:
        mode (str): The mode.
        options (mapping): See :data:`COMPLEMENTARY_LOSS`.
        average (callable, optional): See :class:`~pgnn_geo.losses.SoftComplementaryLoss`.
            (default: :obj:`None`)

    Raises:
        InputError: If a parameter is out of range.
    """
    own = {
        name: options[name]
        for name, owner in COMPLEMENTARY_LOSS.owners.items()
        if owner is SoftComplementaryLoss
    }
    return SoftComplementaryLoss(mode, **own, average=average)


class PreviousMaps(Callback):
    """Keeps the maps of past epochs, for adversarial erasing and for the classes of patches.

    During epoch :math:`e` the maps after :math:`e` epochs are read, and a copy of them is written
    to, each photo once, as the anchor of its group; so the order of the photos does not matter.
    The copies of the last two epochs are kept: a training that was cut off finds the one that its
    checkpoint belongs to. Of several processes each writes a copy of its own, from which the first
    puts together the new maps: of one file that two machines write, both would write whole pages.

    Args:
        dataset (TaggedDataset): The photos, with tags.
        epochs (int): Epochs with this loss.
        folder (Path): Where the maps are kept, until training ends.
        policy, momentum: See :class:`~pgnn_geo.labels.AttentionStore`.
        ranks (Ranks): The processes that share the photos. (default: this one alone)
    """

    def __init__(
        self,
        dataset: TaggedDataset,
        epochs: int,
        folder: Path,
        policy: PolicyName = "last",
        momentum: float = 0.5,
        ranks: Ranks = ALONE,
    ) -> None:
        self.dataset = dataset
        self.epochs = epochs
        self.options = {"policy": policy, "momentum": momentum}
        self.folder = folder
        self.ranks = ranks
        self.kept: set[int] = set()  # photos whose maps this process has written in this epoch
        self.read: AttentionStore | None = None
        self.write: AttentionStore | None = None

    def after(self, epochs: int) -> Path:
        """Where the maps after so many epochs lie."""
        return self.folder / f"epoch-{epochs}"

    def unfinished(self, rank: int) -> Path:
        """Where a process writes the maps of the epoch that runs."""
        return self.folder / f".unfinished-{rank}"

    def reference(self, batch: dict[str, Any], size: Sequence[int]) -> Tensor | None:
        """Return the previous maps :math:`(B, K, h, w)` of what a batch shows."""
        if self.read is None:
            return None
        return self.read.read(*photo_view(batch, self.read.sizes), size=size)

    def keep(self, batch: dict[str, Any], attention: Tensor, group_size: int) -> None:
        """Write the maps of the anchors of a batch's groups."""
        if self.write is not None:
            view = photo_view(batch, self.write.sizes)
            rows, crop, flip = (part[::group_size] for part in view)
            self.write.write(rows, attention[::group_size], crop, flip)
            self.kept.update(rows.tolist())

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the previous maps, and a copy for the new ones."""
        self.read = self.write = None
        epoch = trainer.current_epoch
        if epoch >= self.epochs:
            return
        if epoch == 0:
            self.ranks.first(self._begin)
        own = self.unfinished(self.ranks.rank)
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(self.after(epoch), own)
        self.kept = set()
        self.read = AttentionStore.open(self.after(epoch) / "maps.bin")
        self.write = AttentionStore.open(own / "maps.bin")

    def _begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.after(0).mkdir(parents=True)
        empty_store(self.after(0) / "maps.bin", self.dataset, **self.options)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the new maps the previous ones."""
        if self.write is None:
            return
        self.write.flush()
        kept, epoch = self.ranks.gather(sorted(self.kept)), trainer.current_epoch
        self.ranks.first(lambda: self._finish(epoch, kept))

    def _finish(self, epoch: int, kept: list[list[int]]) -> None:
        """Put together what the processes have written."""
        assert self.write is not None
        for rank, rows in [*enumerate(kept)][1:]:
            self.write.take(AttentionStore.open(self.unfinished(rank) / "maps.bin"), rows)
            shutil.rmtree(self.unfinished(rank))
        self.write.flush()
        shutil.rmtree(self.after(epoch + 1), ignore_errors=True)
        self.unfinished(0).rename(self.after(epoch + 1))
        shutil.rmtree(self.after(epoch - 1), ignore_errors=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the maps."""
        if trainer.is_global_zero:
            shutil.rmtree(self.folder, ignore_errors=True)


def complementary_terms(
    loss: SoftComplementaryLoss,
    model: PGNN,
    batch: dict[str, Any],
    features: Tensor,
    output: PGNNOutput,
    epoch: int,
    previous: PreviousMaps | None,
    group_size: int,
) -> SoftComplementaryTerms:
    """Compute the terms of the loss on one batch, and keep its maps where there is a place.

    Masked features are classified by what follows the backbone, graph included.

    Args:
        loss (SoftComplementaryLoss): The loss.
        model (PGNN): The network.
        batch (dict): What :obj:`output` was computed from, with the boxes if there are any.
        features (torch.Tensor): The output of the backbone.
        output (PGNNOutput): The output of the network.
        epoch (int): The current epoch, from 0.
        previous (PreviousMaps, optional): The previous maps, for :obj:`"erase"`.
        group_size (int): Images in a group.
    """
    tags, graph = batch["tags"], graph_of(batch)
    attention = activate(output.scores, "relu", tags)
    reference = None
    if previous is not None and loss.mode == "erase" and epoch >= loss.warmup:
        reference = previous.reference(batch, attention.shape[2:])
        reference = None if reference is None else reference.to(attention.device)
    terms = loss(
        attention,
        output.logits,
        tags,
        backbone_logits=output.backbone_logits,
        features=features,
        classify=lambda masked: model.forward_features(masked, **graph).logits,
        modules=[module for name, module in model.named_children() if name != "backbone"],
        reference=reference,
        epoch=epoch,
    )
    if previous is not None:
        previous.keep(batch, attention, group_size)
    return terms
