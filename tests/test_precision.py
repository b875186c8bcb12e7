import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.precision import autocast, check_devices, resolve_precision


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


def test_precision_is_that_of_the_device_that_computes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert resolve_precision("auto") == resolve_precision("auto", torch.device("cuda"))
    assert resolve_precision("auto", torch.device("cuda", 1)) == "bf16-mixed"
    assert resolve_precision("auto", torch.device("cpu")) == "32-true"
    with autocast("auto", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
