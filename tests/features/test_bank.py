import pickle
from types import SimpleNamespace

import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import FeatureBank


def test_rows_in_any_order(tmp_path):
    rows = torch.randn(5, 2, 3, 3).half().float()
    bank = FeatureBank.build(tmp_path / "bank.npy", rows.split(2), 5, {"k": 1})
    assert torch.equal(bank[[4, 0, 4]], rows[[4, 0, 4]])
    assert torch.equal(bank[torch.tensor([1])], rows[1:2])
    assert torch.equal(bank[3], rows[3])
    assert len(bank) == 5 and bank.shape == (5, 2, 3, 3)


def test_a_pickle_holds_the_path_only(tmp_path):
    rows = torch.randn(8, 6, 32, 32).half().float()
    bank = FeatureBank.build(tmp_path / "bank.npy", [rows], 8, {"k": 1})
    part = bank.channels(1).channels(1, 3)
    assert torch.equal(part[[5, 0]], rows[[5, 0], 2:4])
    for each in (bank, part):
        data = pickle.dumps(each)
        assert len(data) < 1000 and torch.equal(pickle.loads(data)[[7]], each[[7]])


def test_a_bank_is_written_once_per_key(tmp_path):
    path = tmp_path / "bank.npy"
    FeatureBank.build(path, [torch.ones(2, 1, 1, 1)], 2, {"weights": "a"})

    def never():
        raise AssertionError("computed again")
        yield

    assert FeatureBank.build(path, never(), 2, {"weights": "a"})[0].item() == 1
    again = FeatureBank.build(path, [torch.zeros(2, 1, 1, 1)], 2, {"weights": "b"})
    assert again[0].item() == 0


def test_a_broken_off_bank_is_not_trusted(tmp_path):
    path = tmp_path / "bank.npy"

    def killed():
        yield torch.ones(1, 1, 1, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureBank.build(path, killed(), 2, {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="2 photos was given features of 1"):
        FeatureBank.build(path, [torch.ones(1, 1, 1, 1)], 2, {})


def test_large_activations_stay_finite(tmp_path):
    bank = FeatureBank.build(tmp_path / "b.npy", [torch.full((1, 1, 1, 1), 1e6)], 1, {})
    assert bank[0].item() == 65504


def test_some_of_the_channels(tmp_path):
    rows = torch.randn(5, 6, 3, 3).half().float()
    bank = FeatureBank.build(tmp_path / "bank.npy", [rows], 5, {})
    part = bank.channels(2, 5)
    assert len(part) == 5 and part.shape == (5, 3, 3, 3) and bank.shape == (5, 6, 3, 3)
    assert torch.equal(part[[4, 0]], rows[[4, 0], 2:5])
    assert torch.equal(bank.channels(4)[3], rows[3, 4:])
    window = part.read(1, slice(0, 2), slice(1, 3))
    assert torch.equal(window, rows[1, 2:5, 0:2, 1:3])
    assert bank.channels(6).shape == (5, 0, 3, 3)


def test_a_bank_without_room_is_refused_before_the_second_batch(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=2 * 30 * 4 * 3 * 5 - 1)
    monkeypatch.setattr("pgnn_geo.features.bank.shutil.disk_usage", lambda folder: usage)
    batches = iter([torch.zeros(10, 4, 3, 5)] * 3)
    with pytest.raises(InputError, match="do not fit"):
        FeatureBank.build(tmp_path / "bank.npy", batches, 30, {})
    assert len(list(batches)) == 2 and not list(tmp_path.iterdir())
    usage.free += 1
    FeatureBank.build(tmp_path / "bank.npy", [torch.zeros(10, 4, 3, 5)] * 3, 30, {})
