import os

import pytest

from pgnn_geo.files import atomic_write, write_json


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "figures.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as handle:
        handle.write(b"half")
        raise RuntimeError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(path.parent) == ["figures.json"]


def test_mode_is_that_of_an_ordinary_file(tmp_path):
    mask = os.umask(0o022)
    try:
        write_json(tmp_path / "x.json", 1)
    finally:
        os.umask(mask)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o644
