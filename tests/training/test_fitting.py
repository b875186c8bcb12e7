import pickle

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from pgnn_geo.boxes.detection import DetectorNetworkConfig
from pgnn_geo.errors import InputError
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


def test_an_epoch_line_goes_to_other_processes():
    line = pickle.loads(pickle.dumps(EpochLine("segment", Console(stderr=True))))
    assert line.name == "segment" and not line.console.stderr


def test_too_many_devices_are_found_before_any_work(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    network = DetectorNetworkConfig("vgg_tiny", weights=None)
    assert find_problems(None, network, devices=2) == []
    (problem,) = find_problems(None, network, devices=3)
    assert problem.startswith("devices=3: want 1 to 2")
