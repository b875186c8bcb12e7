"""Stage 1: training attention maps (P-GNN, or its CAM baseline) from image tags."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pgnn_geo.datasets import ClassGroupSampler, TaggedDataset, TrainTransform, collate_groups
from pgnn_geo.errors import InputError
from pgnn_geo.labels.feature_bank import FeatureBank
from pgnn_geo.labels.features import Progress, View, no_progress, stem_bank
from pgnn_geo.losses import classification_loss
from pgnn_geo.nn import PGNN, PGNNOutput
from pgnn_geo.training.callbacks import EpochLine, progress_bars
from pgnn_geo.training.precision import Precision, resolve_precision


@dataclass(frozen=True)
class AttentionTrainingConfig:
    """Hyper-parameters of stage 1.

    Args:
        epochs (int): Epochs; in each, every image is the anchor of one group once.
        size (int): Side of the training images in pixels.
        augment (str): :obj:`"window"`: photos are squashed to a square and passed through the
            frozen stages once, which is kept on disk; each visit sees a random window of that,
            mirrored at random. :obj:`"crop"`: random scale, crop and mirroring of the photo
            itself, everything computed anew each time.
        window (float): Side of the window as a fraction of the square, in :math:`(0, 1]`.
        groups_per_batch (int): Groups in a batch.
        group_size (int): Images in a group (paper: 3).
        lr (float): Peak learning rate of the backbone (AdamW).
        head_lr (float): Peak learning rate of graph and decoders.
        weight_decay (float): Decoupled weight decay.
        seed (int): Seed of initialisation, sampling and augmentation.
        precision (str): :obj:`"auto"` or one of Lightning's names.
        workers (int): Loader processes.
    """

    epochs: int = 3
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


class AttentionModule(LightningModule):
    r"""Trains a :class:`~pgnn_geo.nn.PGNN` by the classification loss on map means.

    AdamW with the polynomial decay :math:`(1 - t/T)^{0.9}` of the segmentation literature.

    Args:
        model (PGNN): The network; with :obj:`layers=0` this trains the CAM baseline.
        config (AttentionTrainingConfig): Hyper-parameters.
    """

    def __init__(self, model: PGNN, config: AttentionTrainingConfig):
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, batch: dict[str, Any]) -> PGNNOutput:
        """Run the model on a batch that holds either :obj:`image` or the frozen :obj:`stem`."""
        group = batch["group"]
        if "stem" in batch:
            features = self.model.backbone.trunk(batch["stem"])
            return self.model.forward_features(features, group=group)
        return self.model(batch["image"], group=group)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the classification loss of one batch of groups."""
        output = self(batch)
        loss = classification_loss(output.logits, batch["tags"], output.backbone_logits)
        self.log(
            "loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch["group"])
        )
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
        scheduler = torch.optim.lr_scheduler.PolynomialLR(
            optimizer, total_iters=int(self.trainer.estimated_stepping_batches), power=0.9
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class StemDataset(Dataset):
    """A tagged data set whose photos are already passed through the backbone's frozen stages.

    Args:
        dataset (TaggedDataset): The photos and tags.
        banks (tuple of FeatureBank): The photos as they are, and mirrored; one is drawn each time.
        window (float): Side of the random window as a fraction of the whole. (default: :obj:`1.0`)
    """

    def __init__(self, dataset: TaggedDataset, banks: tuple[FeatureBank, ...], window: float = 1.0):
        if dataset.tags is None:
            raise InputError("Training needs image tags; this split has none.")
        self.dataset = dataset
        self.tags = dataset.tags
        self.banks = banks
        side = banks[0].shape[-1]
        self.window = max(1, round(window * side))
        self.room = side - self.window + 1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        flip = int(torch.randint(len(self.banks), ()))
        top, left = torch.randint(self.room, (2,)).tolist()
        rows, columns = slice(top, top + self.window), slice(left, left + self.window)
        return {
            "stem": self.banks[flip].read(index, rows, columns),
            "tags": self.tags[index],
            "image_id": self.dataset.image_ids[index],
            "index": index,
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

    Returns:
        The trained model, in evaluation mode.

    Raises:
        InputError: If the data set has no tags.
    """
    config = config or AttentionTrainingConfig()
    seed_everything(config.seed, workers=True, verbose=False)
    module = AttentionModule(model, config)
    checkpoint = ModelCheckpoint(  # after each epoch, in place of the one before
        dirpath=out / "checkpoints", filename="last", enable_version_counter=False
    )
    trainer = Trainer(
        max_epochs=config.epochs,
        precision=resolve_precision(config.precision),
        default_root_dir=out,
        logger=TensorBoardLogger(out, name="tensorboard", version=""),
        callbacks=[checkpoint, EpochLine(name, console or Console()), *progress_bars()],
        enable_progress_bar=bool(progress_bars()),
        enable_model_summary=False,
        use_distributed_sampler=False,  # the group sampler shards by itself
        deterministic="warn",
        log_every_n_steps=1,
    )
    last = out / "checkpoints" / "last.ckpt"
    loader = group_loader(model, dataset, config, stem_folder or out / "stems", progress)
    trainer.fit(module, loader, ckpt_path=last if last.is_file() else None, weights_only=True)
    return model.eval()


def group_loader(
    model: PGNN,
    dataset: TaggedDataset,
    config: AttentionTrainingConfig,
    stem_folder: Path,
    progress: Progress = no_progress,
) -> DataLoader:
    """Return the loader of groups of same-class photos that :obj:`config` describes."""
    if dataset.tags is None:
        raise InputError("Training needs image tags; this split has none.")
    if config.augment == "window":
        views = (View(config.size), View(config.size, flip=True))
        banks = [stem_bank(model.backbone, dataset, stem_folder, v, progress) for v in views]
        photos: StemDataset | TaggedDataset = StemDataset(dataset, tuple(banks), config.window)
    else:
        photos = dataset.with_transform(TrainTransform(config.size))
    sampler = ClassGroupSampler(
        dataset.tags, config.group_size, config.groups_per_batch, seed=config.seed
    )
    return DataLoader(
        photos,
        batch_sampler=sampler,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        collate_fn=partial(collate_groups, group_size=config.group_size),
    )
