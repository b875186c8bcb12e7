"""Lightning callbacks: what a training shows while it runs."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console


class EpochLine(Callback):
    """Prints one line per epoch: name, epoch, every metric logged on the epoch, seconds.

    Args:
        name (str): What is trained.
        console (rich.console.Console, optional): Where to print; standard output if not given.
    """

    def __init__(self, name: str, console: Console | None = None):
        self.name = name
        self.console = console or Console()
        self._start = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes print to their own standard output: a console holds locks."""
        return EpochLine, (self.name,)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        trainer.callback_metrics.clear()  # a loss may have lost terms since the last epoch
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        metrics = {  # of all ranks, so all of them have to ask
            name.removesuffix("_epoch"): float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.endswith("_step")
        }
        if not trainer.is_global_zero:
            return
        figures = "  ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
        self.console.print(
            f"{self.name}  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {figures}  "
            f"{time.perf_counter() - self._start:.0f} s"
        )


def progress_bars() -> list[Callback]:
    """A progress bar where somebody watches; none where the output goes to a file."""
    return [RichProgressBar(leave=False)] if sys.stdout.isatty() else []
