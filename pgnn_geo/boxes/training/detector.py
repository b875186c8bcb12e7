"""Training a detector from image tags, on proposals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import Tensor

from pgnn_geo.boxes.adjuster import BoxAdjuster, check_shared_stages
from pgnn_geo.boxes.oicr import (
    OICRLabels,
    image_loss,
    oicr_centres,
    oicr_labels,
    refinement_loss,
)
from pgnn_geo.boxes.training.box_views import BoxViewData, box_view_dataset
from pgnn_geo.boxes.weak_detector import WeakDetector, WeakDetectorOutput
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.views import Progress, no_progress
from pgnn_geo.precision import Precision
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.fitting import adamw, fit
from pgnn_geo.training.stems import tags_of


@dataclass(frozen=True)
class DetectorTrainingConfig:
    """Hyper-parameters of the detector; the default values are for about a thousand photos.

    Args:
        epochs (int): Passes over the photos.
        batch_size (int): Photos in a batch, of all processes together.
        sizes (tuple of int): Sides of the squares to which photos are resized; each batch draws
            one. Their frozen stages are computed once and kept on disk: 2.8 MB for each photo of
            416 pixels and as much for its mirror image, by VGG-16 with four frozen stages.
        flip (bool): Mirror every second photo.
        max_proposals (int): Proposals of a photo that are drawn for each visit.
        foreground (float): See :func:`~pgnn_geo.boxes.oicr_labels`.
        background (tuple of float): See there.
        adjust_steps (int): How often an adjuster, if there is one, moves the pseudo ground truth.
        lr (float): Initial learning rate of the backbone (AdamW).
        head_lr (float): Initial learning rate of the rest.
        weight_decay (float): Decoupled weight decay.
        seed (int): Seed of initialisation, order and augmentation.
        precision (str): :obj:`"auto"` or one of Lightning's names.
        workers (int): Loader processes.

    Raises:
        InputError: If a number is below 1.
    """

    epochs: int = 8
    batch_size: int = 2
    sizes: tuple[int, ...] = (416,)
    flip: bool = True
    max_proposals: int = 300
    foreground: float = 0.5
    background: tuple[float, float] = (0.0, 0.5)
    adjust_steps: int = 1
    lr: float = 2e-5
    head_lr: float = 2e-4
    weight_decay: float = 1e-2
    seed: int = 0
    precision: Precision = "auto"
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_proposals"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"'{name}' must be 1 or more, got {value}")
        if not self.sizes or min(self.sizes) < 1:
            raise InputError(f"'sizes' must be one or more, each 1 or more, got {self.sizes}")


class DetectorModule(LightningModule):
    r"""Trains a :class:`~pgnn_geo.boxes.WeakDetector` on image tags and its own scores.

    .. math::
        \mathcal{L} = \mathcal{L}_{\text{image}} + \sum_{s=1}^{S} \mathcal{L}_{\text{refine}}^{(s)}

    see :func:`~pgnn_geo.boxes.image_loss` and :func:`~pgnn_geo.boxes.refinement_loss`; the
    labels of refinement :math:`s` come from the scores of stage :math:`s - 1`. Photos without a
    proposal teach nothing.

    Args:
        network (WeakDetector): The network.
        config (DetectorTrainingConfig): Hyper-parameters.
        adjuster (BoxAdjuster, optional): Moves the pseudo ground truth. (default: :obj:`None`)
        ranks (Ranks): The processes that share every batch. (default: this one alone)
    """

    def __init__(
        self,
        network: WeakDetector,
        config: DetectorTrainingConfig,
        adjuster: BoxAdjuster | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.average = ranks.average if ranks.size > 1 else None
        self.adjuster = None if adjuster is None else adjuster.requires_grad_(False)

    def forward(self, batch: dict[str, Any]) -> WeakDetectorOutput:
        """Run the network on a batch of views."""
        features = self.network.backbone.trunk(batch["stem"])
        return self.network.forward_features(features, batch["boxes"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch of photos."""
        output = self(batch)
        counts = torch.tensor([len(boxes) for boxes in batch["boxes"]], device=self.device)
        seen = counts > 0
        scores, tags = output.image_scores[seen], batch["tags"][seen]
        losses = {"loss_image": image_loss(scores, tags, average=self.average)}
        teachers = output.stage_scores[:-1]
        for stage, (scores, logits) in enumerate(zip(teachers, output.refined, strict=True), 1):
            labels, weights = self.pseudo_labels(batch, scores)
            loss = refinement_loss(logits, labels, weights, self.average)
            losses[f"loss_refine_{stage}"] = loss
        loss = torch.stack(list(losses.values())).sum()
        options: dict[str, Any] = {"on_epoch": True, "batch_size": len(counts), "sync_dist": True}
        self.log("loss", loss, on_step=True, prog_bar=True, **options)
        for name, value in losses.items():
            self.log(name, value, on_step=False, **options)
        return loss

    @torch.no_grad()
    def pseudo_labels(self, batch: dict[str, Any], scores: Tensor) -> OICRLabels:
        """Return labels and weights of all proposals of a batch, by their scores :obj:`[R, K]`."""
        parts = scores.split([len(boxes) for boxes in batch["boxes"]])
        centres = [
            oicr_centres(*each) for each in zip(batch["boxes"], parts, batch["tags"], strict=True)
        ]
        if self.adjuster is not None:
            self.adjuster.eval()
            features = self.adjuster.backbone.trunk(batch["stem"])
            size = batch["side"], batch["side"]
            centres = self.adjuster.adjust(features, centres, size, self.config.adjust_steps)
        labels = [
            oicr_labels(boxes, own, self.config.foreground, self.config.background)
            for boxes, own in zip(batch["boxes"], centres, strict=True)
        ]
        return OICRLabels(*(torch.cat(each) for each in zip(*labels, strict=True)))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on what is trained, and a polynomial decay per step."""
        config, network = self.config, self.network
        return adamw(
            self, network, network.backbone, config.lr, config.head_lr, config.weight_decay
        )


def train_detector(
    network: WeakDetector,
    dataset: TaggedDataset,
    proposals: Sequence[Tensor],
    out: Path,
    config: DetectorTrainingConfig | None = None,
    adjuster: BoxAdjuster | None = None,
    stem_folder: Path | None = None,
    callbacks: Sequence[Callback] = (),
    name: str = "detector",
    console: Console | None = None,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> WeakDetector:
    """Train a detector on a data set's tags; a run that was cut off goes on where it stopped.

    Lightning's checkpoint of the last epoch and TensorBoard's log lie in :obj:`out`.

    Args:
        network (WeakDetector): The network, trained in place; build it after
            :func:`seed_everything`.
        dataset (TaggedDataset): :math:`M` photos with tags.
        proposals (sequence of Tensor): For each, boxes :math:`(r, 4)` in its own pixels; there may
            be photos without any.
        out (Path): Folder for checkpoints and logs.
        config (DetectorTrainingConfig, optional): Hyper-parameters; default values if not given.
        adjuster (BoxAdjuster, optional): Moves the pseudo ground truth. (default: :obj:`None`)
        stem_folder (Path, optional): Where outputs of frozen stages are kept, in :obj:`out` if not
            given.
        callbacks (sequence of Callback): Further callbacks. (default: :obj:`()`)
        name (str): How progress lines call it. (default: :obj:`"detector"`)
        console (rich.console.Console, optional): Where progress lines go.
        progress (callable, optional): Progress display of the frozen stages.
        ranks (Ranks): The processes that all call this and share every batch; the first writes
            into :obj:`out`, which all must see. (default: this one alone)

    Returns:
        The trained network, in evaluation mode.

    Raises:
        InputError: If the data set has no tags or other classes, no photo has a proposal, or the
            adjuster has other frozen stages.
    """
    config = config or DetectorTrainingConfig()
    if tags_of(dataset).size(1) != network.num_classes:
        raise InputError(
            f"The detector has {network.num_classes} classes, the data set {len(dataset.classes)}."
        )
    if not any(len(boxes) for boxes in proposals):
        raise InputError("No photo has a proposal; there is nothing to learn from.")
    if adjuster is not None:
        check_shared_stages(network.backbone, adjuster.backbone)
    photos = box_view_dataset(
        network.backbone,
        dataset,
        proposals,
        stem_folder or out / "stems",
        config.sizes,
        config.flip,
        config.max_proposals,
        config.precision,
        progress,
        ranks=ranks,
    )
    data = BoxViewData(photos, config.batch_size, config.seed, config.workers)
    module = DetectorModule(network, config, adjuster, ranks)
    fit(
        module,
        data,
        out,
        config.epochs,
        config.seed,
        precision=config.precision,
        name=name,
        console=console,
        callbacks=callbacks,
        ranks=ranks,
    )
    return network.set_sizes(config.sizes).eval()
