"""Training a box adjuster on boxes of an auxiliary data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from pgnn_geo.boxes.adjuster import BoxAdjuster, encode_boxes, jitter_boxes
from pgnn_geo.boxes.training.box_views import BoxViewData, box_view_dataset
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.views import Progress, no_progress
from pgnn_geo.losses.reduction import divisor
from pgnn_geo.precision import Precision
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.fitting import adamw, fit


@dataclass(frozen=True)
class AdjusterTrainingConfig:
    """Hyper-parameters of a box adjuster.

    Args:
        epochs (int): Passes over the photos.
        batch_size (int): Photos in a batch, of all processes together.
        sizes (tuple of int): Sides of the squares to which photos are resized.
        flip (bool): Mirror every second photo.
        draws (int): Boxes drawn around each true one at each visit.
        min_iou (float): Their least overlap with it, see
            :func:`~pgnn_geo.boxes.jitter_boxes`.
        max_boxes (int): True boxes of a photo that are drawn for each visit.
        lr (float): Initial learning rate of the backbone (AdamW).
        head_lr (float): Initial learning rate of the rest.
        weight_decay (float): Decoupled weight decay.
        seed (int): Seed of initialisation, order and draws.
        precision (str): :obj:`"auto"` or one of Lightning's names.
        workers (int): Loader processes.

    Raises:
        InputError: If a number is out of range.
    """

    epochs: int = 5
    batch_size: int = 4
    sizes: tuple[int, ...] = (416,)
    flip: bool = True
    draws: int = 16
    min_iou: float = 0.3
    max_boxes: int = 10
    lr: float = 2e-5
    head_lr: float = 2e-4
    weight_decay: float = 1e-2
    seed: int = 0
    precision: Precision = "auto"
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "draws", "max_boxes"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"'{name}' must be 1 or more, got {value}")
        if not self.sizes or min(self.sizes) < 1:
            raise InputError(f"'sizes' must be one or more, each 1 or more, got {self.sizes}")
        if not 0 <= self.min_iou < 1:
            raise InputError(f"'min_iou' must be 0 or more and below 1, got {self.min_iou}")


def draw_boxes_around(boxes: Tensor, side: int, draws: int, min_iou: float) -> dict[str, Tensor]:
    """Draw boxes around true ones, see :func:`~pgnn_geo.boxes.jitter_boxes`; cut them at borders.

    Args:
        boxes (torch.Tensor): True boxes :obj:`[n, 4]` in a square view.
        side (int): Its side in pixels.
        draws (int): Draws for each.
        min_iou (float): Least overlap before they are cut.

    Returns:
        The drawn :obj:`boxes` and the :obj:`offsets` that lead back, both :obj:`[n * draws, 4]`.
    """
    moved, targets = jitter_boxes(boxes, draws, min_iou)
    moved = clip_boxes_to_image(moved, (side, side))
    return {"boxes": moved, "offsets": encode_boxes(moved, targets)}


class AdjusterModule(LightningModule):
    r"""Trains a :class:`~pgnn_geo.boxes.BoxAdjuster` to find back to boxes.

    The loss is the smooth L1 distance of the offsets from drawn boxes :math:`\mathbf{b}` to the
    true ones :math:`\mathbf{b}^*` (:func:`draw_boxes_around`):

    .. math::
        \mathcal{L} = \mathrm{mean} \; \mathrm{smooth}_{L_1} \bigl( \mathbf{W}
        \boldsymbol{\varphi}(\mathbf{b}) - \mathrm{encode}(\mathbf{b}, \mathbf{b}^*) \bigr)

    Args:
        adjuster (BoxAdjuster): The network.
        config (AdjusterTrainingConfig): Hyper-parameters.
        ranks (Ranks): The processes that share every batch. (default: this one alone)
    """

    def __init__(
        self, adjuster: BoxAdjuster, config: AdjusterTrainingConfig, ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        self.adjuster = adjuster
        self.config = config
        self.average = ranks.average if ranks.size > 1 else None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch of photos."""
        features = self.adjuster.backbone.trunk(batch["stem"])
        predicted = self.adjuster.forward_features(features, batch["boxes"])
        offsets = torch.cat(batch["offsets"])
        total = F.smooth_l1_loss(predicted, offsets, beta=1 / 9, reduction="sum")
        loss = total / divisor(total.new_full((), offsets.numel()), self.average)
        self.log(
            "loss",
            loss,
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(batch["boxes"]),
            sync_dist=True,
        )
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on what is trained, and a polynomial decay per step."""
        config, network = self.config, self.adjuster
        return adamw(
            self, network, network.backbone, config.lr, config.head_lr, config.weight_decay
        )


def train_adjuster(
    adjuster: BoxAdjuster,
    dataset: TaggedDataset,
    boxes: Sequence[Tensor],
    out: Path,
    config: AdjusterTrainingConfig | None = None,
    stem_folder: Path | None = None,
    callbacks: Sequence[Callback] = (),
    name: str = "adjuster",
    console: Console | None = None,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> BoxAdjuster:
    """Train a box adjuster; a run that was cut off goes on where it stopped.

    Args:
        adjuster (BoxAdjuster): The network, trained in place; build it after
            :func:`seed_everything`.
        dataset (TaggedDataset): Photos, such as :class:`~pgnn_geo.boxes.AuxiliaryBoxes`.
        boxes (sequence of Tensor): For each, one or more boxes :math:`(r, 4)` in its own pixels.
        out (Path): Folder for checkpoints and logs.
        config (AdjusterTrainingConfig, optional): Hyper-parameters; default values if not given.
        stem_folder, callbacks, name, console, progress, ranks: See
            :func:`~pgnn_geo.boxes.training.train_detector`.

    Returns:
        The trained network, in evaluation mode.

    Raises:
        InputError: If a photo has no box.
    """
    config = config or AdjusterTrainingConfig()
    if empty := [i for i, own in zip(dataset.image_ids, boxes, strict=True) if len(own) == 0]:
        raise InputError(f"{len(empty)} photos have no box to learn from, such as {empty[0]}.")
    photos = box_view_dataset(
        adjuster.backbone,
        dataset,
        boxes,
        stem_folder or out / "stems",
        config.sizes,
        config.flip,
        config.max_boxes,
        config.precision,
        progress,
        partial(draw_boxes_around, draws=config.draws, min_iou=config.min_iou),
        ranks,
    )
    data = BoxViewData(photos, config.batch_size, config.seed, config.workers)
    module = AdjusterModule(adjuster, config, ranks)
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
    return adjuster.eval()
