"""The comparison of two reports of a benchmark."""

import json
from pathlib import Path

import pytest
from scripts import run_benchmark


def write(path: Path, ours: float, rivals: dict[str, float], machine: float = 1.0) -> Path:
    """A report of one case on a machine that is so many times as slow."""
    times = {"ours": ours, **rivals}
    rows = [
        {"n": 17, "rival": name, "ms": machine * ms, "ratio": ms / ours, "rounds": 9}
        for name, ms in times.items()
    ]
    path.write_text(json.dumps({"machine": {}, "cases": rows}))
    return path


def test_a_slower_machine_is_no_slow_down(tmp_path: Path, capsys) -> None:
    old = write(tmp_path / "old.json", 2.0, {"loop": 20.0, "product": 8.0})
    new = write(tmp_path / "new.json", 2.0, {"loop": 20.0, "product": 8.0}, machine=3.0)
    run_benchmark("compare", old, new)
    assert capsys.readouterr().out.startswith("1.00x  n 17")


def test_a_slow_down_beyond_the_limit_fails(tmp_path: Path, capsys) -> None:
    old = write(tmp_path / "old.json", 2.0, {"loop": 20.0, "product": 8.0})
    new = write(tmp_path / "new.json", 4.0, {"loop": 20.0, "product": 8.0})
    run_benchmark("compare", old, new, "--limit", 2.1)
    with pytest.raises(SystemExit, match=r"more than 1\.5 times"):
        run_benchmark("compare", old, new)
    assert "2.00x  n 17" in capsys.readouterr().out


def test_reports_of_other_cases_are_refused(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", 2.0, {"loop": 20.0})
    new = tmp_path / "new.json"
    new.write_text(json.dumps({"machine": {}, "cases": []}))
    with pytest.raises(SystemExit, match="no case in common"):
        run_benchmark("compare", old, new)
