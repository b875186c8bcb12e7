"""Stage 1: training attention maps (P-GNN, or its CAM baseline) from image tags."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.views import Progress, no_progress
from pgnn_geo.graph.geometry import patch_class
from pgnn_geo.graph.node_boxes import NodeBoxes
from pgnn_geo.labels import AttentionStore
from pgnn_geo.labels.maps import MapConfig
from pgnn_geo.losses import SeedingLoss, classification_loss
from pgnn_geo.nn import PGNN, PGNNOutput
from pgnn_geo.nn.decoder import activate
from pgnn_geo.precision import Precision
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.complementary import (
    COMPLEMENTARY_LOSS,
    ComplementaryName,
    PreviousMaps,
    build_loss,
    complementary_terms,
)
from pgnn_geo.training.completion import MapCompletion
from pgnn_geo.training.fitting import fit, last_checkpoint
from pgnn_geo.training.stems import VIEW_KEYS, graph_of, group_loader, photo_view, with_boxes

COMPLETION = MapConfig(source="backbone", activation="relu", propagate="both", output_stride=8)


@dataclass(frozen=True)
class AttentionTrainingConfig:
    """Hyper-parameters of stage 1.

    Args:
        epochs (int): Epochs on image tags; in each, every image is the anchor of one group once.
        completion_epochs (int): Epochs after those in which the network is trained toward its own
            maps, completed by :obj:`completion`, see :class:`~pgnn_geo.losses.SeedingLoss`.
        completion (MapConfig): How these maps are inferred and propagated; with precision
            :obj:`"auto"`, in that of the training, and without a size, in its size.
        foreground (float): Reference above which a class is seen in those epochs.
        background (float): Reference below which there is background; between, nothing is learned.
        node_classes (str): Classes of the graph's nodes, see :class:`~pgnn_geo.nn.PGNN`:
            :obj:`"none"`: all background; :obj:`"previous"`: from the second epoch on, those that
            the previous epoch's maps give the patches; :obj:`"references"`: in the epochs toward
            completed maps, those that these give them. At labelling, in either case, those of the
            head before the graph.
        complementary (str): Loss of the first :obj:`epochs`: :obj:`"off"`, the classification loss,
            or a mode of :class:`~pgnn_geo.losses.SoftComplementaryLoss`.
        complementary_loss (dict): Its other arguments, and :obj:`policy` and :obj:`momentum` of the
            :class:`~pgnn_geo.labels.AttentionStore` of the previous epochs' maps.
        size (int): Side of the training images in pixels.
        augment (str): :obj:`"window"`: photos are squashed to a square and passed through the
            frozen stages once, which is kept on disk; each visit sees a random window of that,
            mirrored at random. :obj:`"crop"`: random scale, crop and mirroring of the photo
            itself, everything computed anew each time.
        window (float): Side of the window as a fraction of the square, in :math:`(0, 1]`.
        groups_per_batch (int): Groups in a batch, of all processes together.
        group_size (int): Images in a group (paper: 3).
        lr (float): Peak learning rate of the backbone (AdamW).
        head_lr (float): Peak learning rate of graph and decoders.
        weight_decay (float): Decoupled weight decay.
        seed (int): Seed of initialisation, sampling and augmentation.
        precision (str): :obj:`"auto"` or one of Lightning's names.
        workers (int): Loader processes.
    """

    epochs: int = 3
    completion_epochs: int = 3
    completion: MapConfig = COMPLETION
    foreground: float = 0.5
    background: float = 0.3
    node_classes: Literal["none", "references", "previous"] = "none"
    complementary: ComplementaryName = "off"
    complementary_loss: dict[str, Any] = field(default_factory=COMPLEMENTARY_LOSS.defaults.copy)
    size: int = 256
    augment: Literal["window", "crop"] = "window"
    window: float = 0.75
    groups_per_batch: int = 4
    group_size: int = 3
    lr: float = 2e-4
    head_lr: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0
    precision: Precision = "auto"
    workers: int = 1

    def __post_init__(self) -> None:
        loss = COMPLEMENTARY_LOSS.complete(self.complementary_loss)
        object.__setattr__(self, "complementary_loss", loss)
        if self.epochs < 1 or self.completion_epochs < 0:
            raise InputError(
                f"epochs={self.epochs}, completion_epochs={self.completion_epochs}: want 1 or "
                "more, and 0 or more"
            )

    @property
    def completion_maps(self) -> MapConfig:
        """Return :obj:`completion` with what the training has settled."""
        maps = self.completion
        precision = self.precision if maps.precision == "auto" else maps.precision
        maps = maps.settled(self.size, self.group_size, self.seed)
        return replace(maps, precision=precision)


class AttentionModule(LightningModule):
    r"""Trains a :class:`~pgnn_geo.nn.PGNN` on image tags, then toward its own completed maps.

    First by the classification loss on map means, or the soft-complementary loss; as soon as
    :attr:`references` is set, which :class:`~pgnn_geo.training.completion.MapCompletion` does, by
    the seeding loss on the maps, and with weight 0.4 on those of the head before the graph. AdamW
    with the polynomial decay :math:`(1 - t/T)^{0.9}` of the segmentation literature in each of the
    two parts.

    Args:
        model (PGNN): The network; with :obj:`layers=0` this trains the CAM baseline.
        config (AttentionTrainingConfig): Hyper-parameters.
        previous (PreviousMaps, optional): The previous epoch's maps, which the mode
            :obj:`"erase"` needs. (default: :obj:`None`)
        boxes (NodeBoxes, optional): The boxes of all photos, for a network whose nodes they are.
            (default: :obj:`None`)
        ranks (Ranks): The processes that share every batch. (default: this one alone)

    Raises:
        InputError: If a hyper-parameter is out of range, or it or the boxes do not fit the network.
    """

    def __init__(
        self,
        model: PGNN,
        config: AttentionTrainingConfig,
        previous: PreviousMaps | None = None,
        boxes: NodeBoxes | None = None,
        ranks: Ranks = ALONE,
    ):
        super().__init__()
        self.model = model
        self.config = config
        average = ranks.average if ranks.size > 1 else None
        self.seeding = SeedingLoss(config.foreground, config.background, average)
        self.complementary = None
        if config.complementary != "off":
            self.complementary = build_loss(
                config.complementary, config.complementary_loss, average
            )
        self.previous = previous
        self.references: AttentionStore | None = None
        if config.node_classes != "none" and len(model.blocks) > 0:
            if model.builder.grid is None:
                raise InputError(
                    f"node_classes='{config.node_classes}' needs a grid; boxes have classes"
                )
            if config.node_classes == "references" and not config.completion_epochs:
                raise InputError("node_classes='references' needs completion_epochs of 1 or more")
        if model.needs_boxes != (boxes is not None):
            raise InputError(
                "The network's nodes are boxes; give the photos' boxes."
                if model.needs_boxes
                else "The network's nodes are not boxes; it has no use for those given."
            )
        self.boxes = boxes

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Leave here by what photos are looked up: from a GPU it would be waited for."""
        here = {name: batch[name] for name in VIEW_KEYS if name in batch}
        others = {name: value for name, value in batch.items() if name not in here}
        moved: dict[str, Any] = super().transfer_batch_to_device(others, device, dataloader_idx)
        return moved | here

    def features(self, batch: dict[str, Any]) -> Tensor:
        """Run the backbone on a batch that holds either :obj:`image` or the frozen :obj:`stem`."""
        if "stem" in batch:
            return self.model.backbone.trunk(batch["stem"])
        return self.model.backbone(batch["image"])

    def forward(self, batch: dict[str, Any]) -> PGNNOutput:
        """Run the model on a batch of groups."""
        features = self.features(batch)
        batch = with_boxes(batch, self.boxes, features)
        return self.model.forward_features(features, **graph_of(batch))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch of groups."""
        features = self.features(batch)
        batch = with_boxes(batch, self.boxes, features)
        loss_of = self._tag_loss if self.references is None else self._reference_loss
        loss = loss_of(batch, features)
        self.log(
            "loss",
            loss,
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(batch["group"]),
            sync_dist=True,
        )
        return loss

    def _tag_loss(self, batch: dict[str, Any], features: Tensor) -> Tensor:
        if self.previous is not None and self.config.node_classes == "previous":
            reference = self.previous.reference(batch, features.shape[2:])
            if reference is not None and self.model.builder.grid is not None:
                node_class = patch_class(reference, self.model.builder.grid)
                batch = {**batch, "node_class": node_class.to(features.device)}
        output = self.model.forward_features(features, **graph_of(batch))
        if self.complementary is None:
            if self.previous is not None:
                attention = activate(output.scores, "relu", batch["tags"])
                self.previous.keep(batch, attention, self.config.group_size)
            return classification_loss(output.logits, batch["tags"], output.backbone_logits)
        terms = complementary_terms(
            self.complementary,
            self.model,
            batch,
            features,
            output,
            self.current_epoch,
            self.previous,
            self.config.group_size,
        )
        for name, term in terms._asdict().items():
            if name != "total":
                size = len(batch["group"])
                self.log(name, term, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return terms.total

    def _reference_loss(self, batch: dict[str, Any], features: Tensor) -> Tensor:
        assert self.references is not None
        index, crop, flip = photo_view(batch, self.references.sizes)
        reference = self.references.read(index, crop, flip, size=features.shape[2:])
        reference = reference.to(features.device)
        node_class = None
        if self.model.node_classes == "maps":
            assert self.model.builder.grid is not None
            node_class = patch_class(reference, self.model.builder.grid)
        output = self.model.forward_features(features, node_class=node_class, **graph_of(batch))
        loss: Tensor = self.seeding(output.scores, reference, batch["tags"])
        if output.backbone_scores is not None:
            loss = loss + 0.4 * self.seeding(output.backbone_scores, reference, batch["tags"])
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on what is trained, and a polynomial decay per step."""
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        inside = {id(p) for p in self.model.backbone.parameters()}
        heads = [p for p in self.model.parameters() if id(p) not in inside]
        groups = [{"params": heads, "lr": self.config.head_lr}]
        if backbone:
            groups.append({"params": backbone, "lr": self.config.lr})
        optimizer = torch.optim.AdamW(groups, weight_decay=self.config.weight_decay)
        epochs = self.config.epochs + self.config.completion_epochs
        steps = int(self.trainer.estimated_stepping_batches) / epochs

        def decay(step: int) -> float:
            first = step < steps * self.config.epochs
            start = 0 if first else self.config.epochs
            length = self.config.epochs if first else self.config.completion_epochs
            return float(max(0.0, 1 - (step / steps - start) / max(length, 1)) ** 0.9)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, decay)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def train_attention(
    model: PGNN,
    dataset: TaggedDataset,
    out: Path,
    config: AttentionTrainingConfig | None = None,
    stem_folder: Path | None = None,
    name: str = "attention",
    console: Console | None = None,
    progress: Progress = no_progress,
    boxes: NodeBoxes | None = None,
    ranks: Ranks = ALONE,
) -> PGNN:
    """Train :obj:`model` on a data set's tags; a run that was cut off goes on where it stopped.

    Lightning's checkpoint of the last epoch and TensorBoard's log lie in :obj:`out`.

    Args:
        model (PGNN): The network, trained in place; build it after :func:`seed_everything`.
        dataset (TaggedDataset): Photos with tags.
        out (Path): Folder for checkpoints and logs.
        config (AttentionTrainingConfig, optional): Hyper-parameters; default values if not given.
        stem_folder (Path, optional): Where outputs of frozen stages are kept, in :obj:`out` if not
            given.
        name (str): How progress lines call it. (default: :obj:`"attention"`)
        console (rich.console.Console, optional): Where progress lines go.
        progress (callable, optional): Progress display of the frozen stages.
        boxes (NodeBoxes, optional): The photos' boxes, for a network whose nodes they are; there
            may be photos without any.
        ranks (Ranks): The processes that all call this and share every batch; the first writes
            into :obj:`out`, which all must see. (default: this one alone)

    Returns:
        The trained model, in evaluation mode.

    Raises:
        InputError: If the data set has no tags, the boxes do not fit it or the network, or the
            groups of a batch cannot be shared evenly.
    """
    config = config or AttentionTrainingConfig()
    if boxes is not None and (len(boxes) != len(dataset) or not boxes.counts.any()):
        raise InputError(f"Want boxes of {len(dataset)} photos, at least one; got {boxes}.")
    seed_everything(config.seed, workers=True, verbose=False)
    folder = stem_folder or out / "stems"
    callbacks: list[Callback] = []
    previous = None
    if config.complementary == "erase" or config.node_classes == "previous":
        loss = config.complementary_loss
        joined = loss["policy"], loss["momentum"]
        previous = PreviousMaps(dataset, config.epochs, out / "previous", *joined, ranks)
        callbacks.append(previous)
    if config.completion_epochs:
        callbacks.append(
            MapCompletion(
                dataset,
                config.epochs,
                config.completion_maps,
                out / "references",
                folder,
                progress,
                node_classes=config.node_classes == "references",
                boxes=boxes,
                ranks=ranks,
            )
        )
    module = AttentionModule(model, config, previous, boxes, ranks)
    epoch, last = 0, last_checkpoint(out)
    if last is not None:  # Lightning restores after frozen stages have run and batches are drawn
        state = torch.load(last, map_location="cpu", mmap=True, weights_only=True)
        module.load_state_dict(state["state_dict"])
        epoch = state["epoch"] + 1
    loader = group_loader(model.backbone, dataset, folder, config, epoch, progress, ranks)
    epochs = config.epochs + config.completion_epochs
    fit(
        module,
        loader,
        out,
        epochs,
        config.seed,
        precision=config.precision,
        name=name,
        console=console,
        callbacks=callbacks,
        ranks=ranks,
    )
    if config.completion_epochs:  # what the seeding loss taught the scores to mean
        model.set_activation("softmax")
    if config.node_classes == "previous":
        model.set_node_classes("maps")
    return model.eval()
