"""Stage 2: training DeepLab-v2 on label images, pseudo-labels as a rule."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from pgnn_geo.datasets import Item, TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.views import Progress, no_progress
from pgnn_geo.io.masks import IGNORE
from pgnn_geo.nn.deeplab import DeepLabV2
from pgnn_geo.nn.segmentation_network import SegmentationNetwork, upsample_logits
from pgnn_geo.precision import Precision, check_devices, resolve_precision
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.fitting import fit
from pgnn_geo.training.segmentation_config import SegmentationTrainingConfig
from pgnn_geo.training.stem_crops import StemCrops, padded_stems
from pgnn_geo.training.stems import SeededItems, SeededOrder


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Mean cross-entropy over the positions of the logits whose label is not 255.

    As in DeepLab, the labels are subsampled to the logits, not the logits upsampled to the labels.
    Zero if every label is 255.

    Args:
        logits (Tensor): Logits :math:`(B, K+1, h, w)`.
        labels (Tensor): Label images :math:`(B, H, W)`.
    """
    grid = F.interpolate(labels[:, None].float(), logits.shape[-2:], mode="nearest-exact")
    target = grid[:, 0].long()
    total = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)


class SegmentationData(LightningDataModule):
    """The photos and their label images of the moment, drawn anew in each epoch.

    Order and augmentation depend on the seed, the epoch and the rank only, not on the number of
    loader processes; a run which was cut off continues as it would have done.

    Args:
        dataset (TaggedDataset): Photos whose masks are the labels to learn. It may be replaced
            between epochs; the next epoch reads it.
        config (SegmentationTrainingConfig): Hyper-parameters.
    """

    def __init__(self, dataset: TaggedDataset, config: SegmentationTrainingConfig):
        super().__init__()
        self.dataset = dataset
        self.config = config
        self.stems: tuple[FeatureBank, ...] = ()  # with augment="window"

    @property
    def stem_crops(self) -> StemCrops | None:
        """What items are drawn from with :obj:`augment="window"`, with the labels of now."""
        if self.config.augment == "crop":
            return None
        return StemCrops(self.dataset, self.stems, self.config.size, self.config.crop)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the current epoch: its own processes, with the labels of now."""
        trainer, config = self.trainer, self.config
        assert trainer is not None
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.dataset, trainer.world_size, trainer.global_rank, seed=config.seed
        )
        sampler.set_epoch(trainer.current_epoch)
        photos = self.stem_crops or self.dataset.with_transform(config.transform)
        key = (config.seed, trainer.current_epoch, trainer.global_rank)
        return DataLoader(
            SeededItems(photos),
            batch_size=config.batch_size,
            sampler=SeededOrder(sampler, key),
            num_workers=config.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # an iterator takes nothing from the chance of training
        )


class SegmentationModule(LightningModule):
    r"""Trains a :class:`~pgnn_geo.nn.SegmentationNetwork` by :func:`segmentation_loss`.

    Polynomial decay :math:`(1 - t/T)^{0.9}` per step. With several scales :math:`s` of the crop
    :math:`x`, as in DeepLab-v2,

    .. math::
        L = \sum_s \ell(z_s, y) + \ell(\max_s z_s, y), \qquad z_s = f(\mathrm{resize}_s(x))

    Args:
        network (SegmentationNetwork): The network.
        config (SegmentationTrainingConfig): Hyper-parameters.
    """

    def __init__(self, network: SegmentationNetwork, config: SegmentationTrainingConfig):
        super().__init__()
        self.network = network
        self.config = config

    def forward(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Return the logits at each scale and, if there are several, their maximum.

        Args:
            batch (dict): With either the :obj:`image` or the :obj:`stem` of each crop.
        """
        memory_format = _memory_format(self.config.precision)
        network = self.network
        if "stem" in batch:
            assert isinstance(network, DeepLabV2)  # as train_segmentation sees to
            stems = batch["stem"].contiguous(memory_format=memory_format)
            return [network.head(network.backbone.trunk(stems))]
        images = batch["image"].contiguous(memory_format=memory_format)
        logits = [network(_rescale(images, scale)) for scale in self.config.loss_scales]
        if len(logits) == 1:
            return logits
        size = max((each.shape[-2:] for each in logits), key=lambda shape: shape[0])
        same = torch.stack([upsample_logits(each, size) for each in logits])
        return [*logits, same.amax(dim=0)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch of crops."""
        mask = batch["mask"]
        loss = torch.stack([segmentation_loss(z, mask) for z in self(batch)]).sum()
        self.log(
            "loss",
            loss,
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(mask),
            sync_dist=True,
        )
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD or AdamW on what is trained, and a polynomial decay per step."""
        config = self.config
        groups = self.network.parameter_groups(config.lr, config.head_factor)
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                groups, momentum=config.momentum, weight_decay=config.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        scheduler = torch.optim.lr_scheduler.PolynomialLR(
            optimizer, total_iters=int(self.trainer.estimated_stepping_batches), power=0.9
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def train_segmentation(
    network: SegmentationNetwork,
    data: TaggedDataset | SegmentationData,
    out: Path,
    config: SegmentationTrainingConfig | None = None,
    callbacks: Sequence[Callback] = (),
    name: str = "segmentation",
    console: Console | None = None,
    progress: Progress = no_progress,
    stem_folder: Path | None = None,
    ranks: Ranks = ALONE,
) -> SegmentationNetwork:
    """Train :obj:`network` on label images; a run that was cut off goes on where it stopped.

    Lightning's checkpoint of the last epoch and TensorBoard's log lie in :obj:`out`.

    Args:
        network (SegmentationNetwork): The network, trained in place; build it after
            :func:`seed_everything`, a :class:`~pgnn_geo.nn.DeepLabV2` with :obj:`config.head`.
        data (TaggedDataset or SegmentationData): Photos whose masks are the labels to learn, see
            :meth:`~pgnn_geo.datasets.TaggedDataset.with_masks`; with
            :class:`~pgnn_geo.training.mutual.MutualComplement` the module that it changes.
        out (Path): Folder for checkpoints and logs.
        config (SegmentationTrainingConfig, optional): Hyper-parameters; default values if not
            given.
        callbacks (sequence of Callback): Further callbacks. (default: :obj:`()`)
        name (str): How progress lines call it. (default: :obj:`"segmentation"`)
        console (rich.console.Console, optional): Where progress lines go.
        progress (callable, optional): Progress display of the frozen stages.
        stem_folder (Path, optional): Where their outputs are kept for reuse; in :obj:`out`, until
            training ends, if not given.
        ranks (Ranks): The processes that all call this, with a share of the photos each; the first
            writes into :obj:`out`, which all must see. (default: this one alone)

    Returns:
        The trained network, in evaluation mode.

    Raises:
        InputError: If there are no label images, the network has other classes, sizes and strides
            do not fit each other, or there are not so many devices.
    """
    config = config or SegmentationTrainingConfig()
    if not isinstance(data, SegmentationData):
        data = SegmentationData(data, config)
    _check_labels(data.dataset, network)
    check_devices(config.devices)
    network.freeze(config.freeze_stages)
    network.to(memory_format=_memory_format(config.precision))
    module = SegmentationModule(network, config)
    epochs = config.num_epochs(len(data.dataset), ranks.size)
    with network.at_output_stride(config.train_stride):
        if config.augment == "window":
            if not isinstance(network, DeepLabV2):
                raise InputError(
                    f"augment='window': {type(network).__name__} has no frozen stages; want "
                    "augment='crop'"
                )
            folder, options = stem_folder or out / "stems", (config.size, config.precision)
            data.stems = padded_stems(
                network.backbone, data.dataset, folder, *options, progress, ranks
            )
        fit(
            module,
            data,
            out,
            epochs,
            config.seed,
            precision=config.precision,
            name=name,
            console=console,
            callbacks=callbacks,
            devices=config.devices,
            ranks=ranks,
        )
    if stem_folder is None and ranks.is_first:
        shutil.rmtree(out / "stems", ignore_errors=True)  # gigabytes that only training needs
    return network.to(memory_format=torch.contiguous_format).eval()


def _check_labels(dataset: TaggedDataset, network: SegmentationNetwork) -> None:
    if len(dataset) == 0 or dataset.mask_path(0) is None:
        raise InputError("Training needs label images: see TaggedDataset.with_masks.")
    if network.num_classes != len(dataset.classes):
        raise InputError(
            f"The network has {network.num_classes} classes, the data set {len(dataset.classes)}."
        )


def _collate(items: list[Item]) -> dict[str, Tensor]:
    return {
        name: torch.stack([item[name].as_subclass(Tensor) for item in items])
        for name in ("image", "stem", "mask")
        if name in items[0]
    }


def _rescale(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = [max(1, round(n * scale)) for n in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=scale < 1)


def _memory_format(precision: Precision) -> torch.memory_format:
    """Channels last where convolutions run in half precision: they are faster in it."""
    half = resolve_precision(precision) != "32-true"
    return torch.channels_last if half else torch.contiguous_format
