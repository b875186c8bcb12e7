import json
import os
import pickle
import signal
from types import SimpleNamespace

import forked
import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.features import FeatureBank, bank
from pgnn_geo.io.files import write_json


def given(rows, size=2):
    """What `build` takes: batches of the rows from any of them on."""
    return lambda first: rows[first:].split(size)


def never(first):
    raise AssertionError("computed again")


def test_rows_in_any_order(tmp_path):
    rows = torch.randn(5, 2, 3, 3).half().float()
    made = FeatureBank.build(tmp_path / "bank.npy", given(rows), 5, {"k": 1})
    assert torch.equal(made[[4, 0, 4]], rows[[4, 0, 4]])
    assert torch.equal(made[torch.tensor([1])], rows[1:2])
    assert torch.equal(made[3], rows[3])
    assert len(made) == 5 and made.shape == (5, 2, 3, 3)


def test_positions_are_rows_of_a_matrix_without_a_copy(tmp_path):
    rows = torch.randn(4, 6, 3, 3)
    x = FeatureBank.build(tmp_path / "bank.npy", given(rows), 4, {})[[2, 1]]
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.permute(0, 2, 3, 1).reshape(-1, 6).data_ptr() == x.data_ptr()


def test_a_pickle_holds_the_path_only(tmp_path):
    rows = torch.randn(8, 6, 32, 32).half().float()
    made = FeatureBank.build(tmp_path / "bank.npy", given(rows), 8, {"k": 1})
    part = made.channels(1).channels(1, 3)
    assert torch.equal(part[[5, 0]], rows[[5, 0], 2:4])
    for each in (made, part):
        data = pickle.dumps(each)
        assert len(data) < 1000 and torch.equal(pickle.loads(data)[[7]], each[[7]])


def test_a_bank_is_written_once_per_key(tmp_path):
    path = tmp_path / "bank.npy"
    FeatureBank.build(path, given(torch.ones(2, 1, 1, 1)), 2, {"weights": "a"})
    assert FeatureBank.build(path, never, 2, {"weights": "a"})[0].item() == 1
    again = FeatureBank.build(path, given(torch.zeros(2, 1, 1, 1)), 2, {"weights": "b"})
    assert again[0].item() == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bank.json", "bank.npy"]


def test_a_shortened_bank_is_made_anew(tmp_path):
    path, rows = tmp_path / "bank.npy", torch.randn(6, 4, 3, 3).half().float()
    FeatureBank.build(path, given(rows), 6, {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert not FeatureBank.is_current(path, {})
    assert torch.equal(FeatureBank.build(path, given(rows), 6, {})[[5]], rows[[5]])
    assert path.read_bytes() == whole


THREE_PHOTOS, ALWAYS, NEVER = 3 * 72, 0.0, float("inf")


def killed(path, note_every, note_seconds):
    """Write a bank in a process that is killed at the ninth photo."""

    def features(first):
        for i in range(first, 10):
            if i == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            yield torch.full((1, 4, 3, 3), float(i))

    def write():
        bank._NOTE_EVERY, bank._NOTE_SECONDS = note_every, note_seconds
        FeatureBank.build(path, features, 10, {"weights": "a"})

    assert forked.run(write) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("key", "size", "seconds", "first"),
    [("a", THREE_PHOTOS, NEVER, 6), ("b", THREE_PHOTOS, NEVER, 0), ("a", NEVER, ALWAYS, 8)],
)
def test_a_killed_writing_goes_on_where_it_was(tmp_path, key, size, seconds, first):
    path = tmp_path / "bank.npy"
    killed(path, size, seconds)
    assert not path.exists()
    asked = []

    def features(start):
        asked.append(start)
        return torch.arange(start, 10.0).view(-1, 1, 1, 1).expand(-1, 4, 3, 3).split(3)

    made = FeatureBank.build(path, features, 10, {"weights": key})
    assert asked == [first]
    assert torch.equal(made[list(range(10))][:, 0, 0, 0], torch.arange(10.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bank.json", "bank.npy"]


def test_killed_while_it_is_finished_nothing_is_computed_again(tmp_path, monkeypatch):
    path, rows = tmp_path / "bank.npy", torch.randn(5, 2, 3, 3).half().float()

    def fails(name, value):
        if name == path.with_suffix(".json"):
            raise KeyboardInterrupt
        write_json(name, value)

    with monkeypatch.context() as patch:
        patch.setattr(bank, "write_json", fails)
        with pytest.raises(KeyboardInterrupt):
            FeatureBank.build(path, given(rows), 5, {"weights": "a"})
    assert path.is_file() and not FeatureBank.is_current(path, {"weights": "a"})
    made = FeatureBank.build(path, never, 5, {"weights": "a"})
    assert torch.equal(made[list(range(5))], rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bank.json", "bank.npy"]


def test_a_spoilt_note_is_not_trusted(tmp_path):
    path = tmp_path / "bank.npy"
    killed(path, THREE_PHOTOS, NEVER)
    (tmp_path / ".bank.npy.json").write_text("{")
    rows = torch.randn(10, 4, 3, 3).half().float()
    assert torch.equal(FeatureBank.build(path, given(rows), 10, {"weights": "a"})[[7]], rows[[7]])


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_photos_is_an_error(tmp_path, count):
    with pytest.raises(ValueError, match=f"{count} photos was given features of"):
        FeatureBank.build(tmp_path / "bank.npy", given(torch.ones(2, 1, 1, 1)), count, {})
    assert not (tmp_path / "bank.npy").exists()


def test_large_activations_stay_finite(tmp_path):
    made = FeatureBank.build(tmp_path / "b.npy", given(torch.full((1, 1, 1, 1), 1e6)), 1, {})
    assert made[0].item() == 65504


def test_some_of_the_channels(tmp_path):
    rows = torch.randn(5, 6, 3, 3).half().float()
    made = FeatureBank.build(tmp_path / "bank.npy", given(rows), 5, {})
    part = made.channels(2, 5)
    assert len(part) == 5 and part.shape == (5, 3, 3, 3) and made.shape == (5, 6, 3, 3)
    assert torch.equal(part[[4, 0]], rows[[4, 0], 2:5])
    assert torch.equal(made.channels(4)[3], rows[3, 4:])
    window = part.read(1, slice(0, 2), slice(1, 3))
    assert torch.equal(window, rows[1, 2:5, 0:2, 1:3])
    assert made.channels(6).shape == (5, 0, 3, 3)


def test_a_bank_without_room_is_refused_before_the_second_batch(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=128 + 2 * 30 * 4 * 3 * 5 - 1)  # header and values
    monkeypatch.setattr(bank.shutil, "disk_usage", lambda folder: usage)
    batches = iter([torch.zeros(10, 4, 3, 5)] * 3)
    with pytest.raises(InputError, match="do not fit"):
        FeatureBank.build(tmp_path / "bank.npy", lambda first: batches, 30, {})
    assert len(list(batches)) == 2 and not list(tmp_path.iterdir())
    usage.free += 1
    made = FeatureBank.build(tmp_path / "bank.npy", given(torch.zeros(30, 4, 3, 5)), 30, {})
    assert json.loads(made.path.with_suffix(".json").read_text()) == {}
