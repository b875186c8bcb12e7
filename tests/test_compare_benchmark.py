"""The comparison of two reports of a benchmark."""

import json
from pathlib import Path

import pytest
from scripts import BENCHMARKS, run_benchmark


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


def test_variants_of_ours_and_parts_of_the_package_are_no_rivals(tmp_path: Path, capsys) -> None:
    rivals = {"ours, edges": 4.0, "ours, checked": 4.0, "stitch": 1.0, "copy": 1.0}
    old = write(tmp_path / "old.json", 2.0, rivals)
    slower = {name: 3 * ms for name, ms in rivals.items() if name != "copy"}
    new = write(tmp_path / "new.json", 6.0, slower | {"copy": 1.0})
    run_benchmark("compare", old, new, "--limit", 3.1)
    assert capsys.readouterr().out.startswith("3.00x  n 17")


def test_times_may_be_multiples_of_any_rival(tmp_path: Path, capsys) -> None:
    old = write(tmp_path / "old.json", 2.0, {"copy": 1.0})
    new = write(tmp_path / "new.json", 3.0, {"copy": 1.0})
    for path, ours in ((old, 2.0), (new, 3.0)):  # as multiples of the copy, not of ours
        report = json.loads(path.read_text())
        report["cases"][0]["ratio"], report["cases"][1]["ratio"] = ours, 1.0
        path.write_text(json.dumps(report))
    run_benchmark("compare", old, new)
    assert capsys.readouterr().out.startswith("1.50x")


@pytest.mark.parametrize("name", ["edges", "conv", "builder"])
def test_the_committed_ones_can_be_compared(name: str, capsys) -> None:
    path = BENCHMARKS / "baselines" / f"{name}.json"
    run_benchmark("compare", path, path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 and all(line.startswith("1.00x") for line in lines)


def test_reports_of_other_cases_are_refused(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", 2.0, {"loop": 20.0})
    new = tmp_path / "new.json"
    new.write_text(json.dumps({"machine": {}, "cases": []}))
    with pytest.raises(SystemExit, match="no case in common"):
        run_benchmark("compare", old, new)
