"""Fitting as every training does it: resumable, one line per epoch, TensorBoard's log."""

import os
import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from pgnn_geo.errors import InputError, plain_errors
from pgnn_geo.io.checkpoint import save_tensors
from pgnn_geo.precision import Precision, check_devices, default_device, resolve_precision
from pgnn_geo.ranks import ALONE, Ranks, ended_as_line
from pgnn_geo.training.callbacks import EpochLine, progress_bars


class SeededEpochs(Callback):
    """Draws the chance within each epoch, such as dropout, from the seed and the epoch.

    Args:
        seed (int): The seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed PyTorch."""
        key = [self.seed % 2**64, trainer.current_epoch, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the last one and renames it.

    Lightning's own writes it in the system's folder for temporary files and moves it: a copy, if
    that is on another disk, and whoever is killed meanwhile has neither the old nor the new one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint, atomically."""
        save_tensors(path, checkpoint)


class _RanksEnvironment(LightningEnvironment):
    """Tells Lightning of processes that have met, whoever started them; each has one device.

    Args:
        ranks (Ranks): The processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        """They are there."""
        return True

    def world_size(self) -> int:
        """How many there are."""
        return self.ranks.size

    def set_world_size(self, size: int) -> None:
        """Nothing: it is known."""

    def global_rank(self) -> int:
        """The number of this one."""
        return self.ranks.rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing: it is known."""

    def local_rank(self) -> int:
        """The number of its device among those that it has: one."""
        return 0


def fit(
    module: LightningModule,
    data: LightningDataModule | DataLoader[Any],
    out: Path,
    epochs: int,
    seed: int,
    precision: Precision = "auto",
    name: str = "training",
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    devices: int = 1,
    ranks: Ranks = ALONE,
) -> None:
    """Train a module; a run that was cut off goes on where it stopped, bit for bit.

    Lightning's checkpoint of the last epoch and TensorBoard's log lie in :obj:`out`. With several
    devices each has a process of its own for the time of the training, which prints to standard
    output; here only the weights change, not the callbacks nor the data.

    Args:
        module (LightningModule): What is trained, in place.
        data (LightningDataModule or DataLoader): What it draws depends on the epoch and nothing
            before it.
        out (Path): Folder for checkpoints and logs.
        epochs (int): Number of epochs.
        seed (int): Seed of the chance within epochs.
        precision (str): :obj:`"auto"` or one of Lightning's names. (default: :obj:`"auto"`)
        name (str): How progress lines call it. (default: :obj:`"training"`)
        console (rich.console.Console, optional): Where progress lines go.
        callbacks (sequence of Callback): Further callbacks. (default: :obj:`()`)
        devices (int): GPUs, or processes where there is no GPU; with more than one, :obj:`data`
            must give each rank its own share. (default: :obj:`1`)
        ranks (Ranks): The processes that all call this, with one device each; here too
            :obj:`data` must give each its own share. (default: this one alone)

    Raises:
        InputError: If there are not so many devices, training raised one, or another process has
            ended.
    """
    check_devices(devices, ranks.size)
    if devices > 1:
        module.cpu()  # from which each process takes it to its own device
        torch.cuda.empty_cache()  # the room is for the first of them
    checkpoint = ModelCheckpoint(  # after each epoch, in place of the one before
        dirpath=out / "checkpoints", filename="last", enable_version_counter=False
    )
    line = EpochLine(name, console)
    here = ranks.size > 1  # in this process and others like it
    strategy: DDPStrategy | str = "auto"
    if here:
        # A transformer's last norm, say, may be read by no head.
        strategy = DDPStrategy(find_unused_parameters=True)
    elif devices > 1:
        # Not processes that run the whole program again: what comes after is for one alone.
        strategy = DDPStrategy(start_method="spawn")
    trainer = Trainer(
        max_epochs=epochs,
        accelerator=default_device().type,
        devices=[torch.cuda.current_device()] if here and torch.cuda.is_available() else devices,
        # Named, as Lightning would take the variables of SLURM for processes to wait for.
        plugins=[
            AtomicCheckpointIO(),
            _RanksEnvironment(ranks) if here else LightningEnvironment(),
        ],
        strategy=strategy,
        precision=resolve_precision(precision),
        default_root_dir=out,
        logger=TensorBoardLogger(out, name="tensorboard", version=""),
        # The checkpoint of an epoch must come after what the other callbacks did in it.
        callbacks=[SeededEpochs(seed), *callbacks, line, *progress_bars(), checkpoint],
        enable_progress_bar=bool(progress_bars()),
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data shards itself
        reload_dataloaders_every_n_epochs=1,  # an epoch has a draw, perhaps labels, of its own
        deterministic="warn",
        log_every_n_steps=1,
    )
    with plain_errors(), ended_as_line() if here else nullcontext():
        trainer.fit(module, data, ckpt_path=last_checkpoint(out), weights_only=True)


def last_checkpoint(out: Path) -> Path | None:
    """Return the checkpoint that :func:`fit` would go on from, if there is one.

    Raises:
        InputError: If it is damaged, or holds more than tensors and plain values.
    """
    path = out / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return None
    try:
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            f"checkpoint {path} cannot be read: {error}; delete it to start this training anew"
        ) from error
    return path


def adamw(
    module: LightningModule,
    network: nn.Module,
    backbone: nn.Module,
    lr: float,
    head_lr: float,
    weight_decay: float,
) -> OptimizerLRScheduler:
    """AdamW with one rate for the backbone and one for the rest, and a polynomial decay per step.

    Args:
        module (LightningModule): Knows the number of steps.
        network (torch.nn.Module): All that may be trained.
        backbone (torch.nn.Module): Its backbone; frozen parameters are left out.
        lr (float): Initial rate of the backbone.
        head_lr (float): Initial rate of the rest.
        weight_decay (float): Decoupled weight decay.
    """
    trained = [p for p in backbone.parameters() if p.requires_grad]
    inside = {id(p) for p in backbone.parameters()}
    groups = [{"params": [p for p in network.parameters() if id(p) not in inside], "lr": head_lr}]
    if trained:
        groups.append({"params": trained, "lr": lr})
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(
        optimizer, total_iters=int(module.trainer.estimated_stepping_batches), power=0.9
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
