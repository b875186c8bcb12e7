import os
import signal

import forked
import numpy as np
import pytest

from pgnn_geo.io.files import (
    RESULT_MARK,
    atomic_folder,
    atomic_write,
    first_difference,
    mark_results,
    remove_unfinished,
    write_json,
)
from pgnn_geo.io.masks import save_mask


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "figures.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as handle:
        handle.write(b"half")
        raise RuntimeError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(path.parent) == ["figures.json"]


def killed(root):
    with atomic_folder(root / "deep" / "model") as folder, atomic_write(folder / "a"):
        with atomic_write(root / "b"):
            os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_leaves_is_removed_and_nothing_else(tmp_path):
    assert forked.run(killed, tmp_path) == -signal.SIGKILL
    left = [path for path in tmp_path.rglob(".tmp-*") if path.is_file()]
    assert len(left) == 2
    foreign = tmp_path / ".tmp-elsewhere-1-abc"
    foreign.write_text("of another machine, which may be at it")
    with atomic_write(tmp_path / "own") as handle:
        remove_unfinished(tmp_path)
        handle.write(b"at it")
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["deep", foreign.name, "own"])
    os.utime(foreign, (0, 0))
    remove_unfinished(tmp_path)
    assert not foreign.exists() and (tmp_path / "own").read_bytes() == b"at it"


def test_mode_is_that_of_an_ordinary_file(tmp_path):
    mask = os.umask(0o022)
    try:
        write_json(tmp_path / "x.json", 1)
    finally:
        os.umask(mask)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o644


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "model"
    with pytest.raises(RuntimeError), atomic_folder(folder) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert os.listdir(folder.parent) == []
    mask = os.umask(0o022)
    try:
        with atomic_folder(folder) as temporary:
            (temporary / "a").write_text("first")
            assert not folder.exists()
    finally:
        os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o755
    with pytest.raises(RuntimeError), atomic_folder(folder) as temporary:
        raise RuntimeError
    assert (folder / "a").read_text() == "first"
    with atomic_folder(folder) as temporary:
        (temporary / "b").write_text("second")
    assert os.listdir(folder) == ["b"] and os.listdir(folder.parent) == ["model"]


def test_names_may_be_as_long_as_the_system_allows(tmp_path):
    name = "x" * 251 + ".png"
    save_mask(tmp_path / name, np.ones((2, 3), dtype=np.uint8))
    umlauts = "ü" * 125 + ".json"
    write_json(tmp_path / umlauts, 1)
    with atomic_folder(tmp_path / ("y" * 255)) as temporary:
        (temporary / "a").touch()
    assert sorted(os.listdir(tmp_path)) == sorted([name, umlauts, "y" * 255])


def test_a_folder_is_marked_as_one_of_results(tmp_path):
    mark_results(tmp_path / "labels")
    mark_results(tmp_path / "labels")
    assert os.listdir(tmp_path / "labels") == [RESULT_MARK]


def test_first_difference():
    found = {"a": 1, "b": {"c": [1, 2], "d": 0}}
    assert first_difference(found, {"b": {"d": 0, "c": [1, 2]}, "a": 1}) is None
    assert first_difference(found, {"a": 1, "b": {"c": [1], "d": 0}}) == (
        "b.c: [1, 2] there, [1] asked for"
    )
    assert first_difference(found, {"a": 1}).startswith("b: {'c': [1, 2]")
    # A setting that there was not yet is one that is not made use of.
    assert first_difference(found, {**found, "e": None}) is None
    assert first_difference(found, {"e": None, **found, "a": 2}) == "a: 1 there, 2 asked for"
    assert first_difference(found, {**found, "e": {"f": 1}}) == "e: None there, {'f': 1} asked for"
