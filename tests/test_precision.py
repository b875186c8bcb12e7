import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.precision import check_devices


def test_as_many_devices_as_there_are_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(2)
    for devices in (0, 3):
        with pytest.raises(InputError, match=f"devices={devices}: want 1 to 2, the GPUs"):
            check_devices(devices)


def test_any_number_of_processes_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check_devices(5)
    with pytest.raises(InputError, match="devices=-1: want 1 or more"):
        check_devices(-1)
