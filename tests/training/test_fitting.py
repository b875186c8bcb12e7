import errno
import os
import pickle
import tempfile

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from rich.console import Console
from torch import nn
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader

from pgnn_geo.datasets import Shapes, TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features import View, photo_batches
from pgnn_geo.nn.backbones import BackboneSource
from pgnn_geo.training import fitting
from pgnn_geo.training.callbacks import EpochLine
from pgnn_geo.training.preflight import find_problems


@pytest.mark.parametrize("ours", [True, False])
def test_an_input_error_of_another_process_is_one_here(monkeypatch, tmp_path, ours):
    """What torch raises holds the other process's traceback, message last."""
    last = (
        "pgnn_geo.errors.InputError: Labels are missing:\n  put them back" if ours else "KeyError"
    )

    def fit(self, *args, **kwargs):
        raise ProcessRaisedException(f"Traceback (most recent call last):\n  File\n{last}\n", 1, 7)

    monkeypatch.setattr(fitting.Trainer, "fit", fit)
    expected = InputError if ours else ProcessRaisedException
    with pytest.raises(expected) as raised:
        fitting.fit(nn.Identity(), None, tmp_path, epochs=1, seed=0)
    if ours:
        assert str(raised.value) == "Labels are missing:\n  put them back"


def test_an_input_error_of_a_loader_is_one_here(shapes_root, tmp_path):
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    gone = tmp_path / "gone.png"
    there = TaggedDataset(["a", "b"], [photos.image_path(0), gone], photos.classes, None)
    with pytest.raises(InputError) as raised:
        list(photo_batches(there, View(32), 1, workers=1))
    assert str(raised.value) == f"photo '{gone}' does not exist"


def test_checkpoints_are_written_beside_the_last_one(monkeypatch, tmp_path):
    # A file that is moved from another disk is copied, so that a kill leaves half of it.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    data = DataLoader(RandomDataset(32, 4))
    fitting.fit(BoringModel(), data, tmp_path / "out", epochs=1, seed=0)
    path = fitting.last_checkpoint(tmp_path / "out")
    assert os.listdir(path.parent) == ["last.ckpt"]
    whole = path.read_bytes()

    def full(content, handle):
        handle.write(whole[:100])
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904 - as torch does

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        fitting.fit(BoringModel(), data, tmp_path / "out", epochs=2, seed=0)
    assert path.read_bytes() == whole and os.listdir(path.parent) == ["last.ckpt"]


def test_an_epoch_line_goes_to_other_processes():
    line = pickle.loads(pickle.dumps(EpochLine("segment", Console(stderr=True))))
    assert line.name == "segment" and not line.console.stderr


def test_too_many_devices_are_found_before_any_work(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    source = BackboneSource("vgg_tiny", None)
    assert find_problems(None, source, devices=2) == []
    (problem,) = find_problems(None, source, devices=3)
    assert problem.startswith("devices=3: want 1 to 2")
