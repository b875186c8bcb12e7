"""Trains on two devices as a script does: `python two_devices.py step|mutual OUT SHAPES`.

Tests run it as a process, since what is pickled for other processes must be importable there.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch import Callback

from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.nn import DeepLabV2
from pgnn_geo.training.mutual import MutualComplement
from pgnn_geo.training.segmentation import SegmentationData, train_segmentation
from pgnn_geo.training.segmentation_config import SegmentationTrainingConfig

CONFIG = SegmentationTrainingConfig(
    epochs=1,
    steps=None,
    batch_size=10,
    size=64,
    crop=64,
    lr=0.1,
    head_factor=1.0,
    momentum=0.0,
    weight_decay=0.0,
    workers=0,
    precision="32-true",
    devices=2,
)


class KeepsBatch(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        torch.save(batch, self.folder / f"batch{trainer.global_rank}-{batch_idx}.pt")


class Dies(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise InputError("the second epoch")


def tiny(seed):
    torch.manual_seed(seed)
    return DeepLabV2("vgg_tiny", 5, "largefov", (2,), hidden_channels=None, weights=None)


def step(out, shapes):
    """One step, with what each device saw."""
    network = tiny(0)
    torch.save(network.state_dict(), out / "before.pt")
    train_segmentation(network, shapes, out, CONFIG, [KeepsBatch(out)])
    torch.save(network.state_dict(), out / "after.pt")


def mutual(out, shapes):
    """Two epochs of the mutual complement: whole, cut off, resumed, and with labels that got lost.

    Labels of the whole training and of the resumed one lie in OUT/whole and OUT/cut.
    """
    errors = []
    config = replace(CONFIG, epochs=2, optimizer="adamw", lr=1e-3)

    def train(name, seed=0, callbacks=()):
        data = SegmentationData(shapes, config)
        complement = MutualComplement(data, out / name / "labels", truth=shapes)
        try:
            train_segmentation(tiny(seed), data, out / name, config, [complement, *callbacks])
        except InputError as error:
            errors.append(str(error))

    train("whole")
    train("cut", callbacks=[Dies()])
    shutil.copytree(out / "cut", out / "lost")
    train("cut", seed=5)
    shutil.rmtree(out / "lost" / "labels" / "epoch-001")
    train("lost")
    (out / "errors.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    folder, root = map(Path, sys.argv[2:])
    photos = Shapes(root, "train", num_images=(20, 10), size=64, with_masks=True)
    {"step": step, "mutual": mutual}[sys.argv[1]](folder, photos)
