"""benchmarks/kills.py as its user starts it: killed runs go on to the same files."""

from pathlib import Path

import pytest
from scripts import run_benchmark


def killed(out: Path, *options: object) -> list[str]:
    """Rows of the table."""
    with pytest.raises(SystemExit) as ended:
        run_benchmark("kills", "--out", out, *options)
    assert not ended.value.code
    return (out / "kills.md").read_text().splitlines()[2:]


def test_one_of_two_processes_is_killed_twice(tmp_path: Path) -> None:
    stages = ["two:features", "two:labelling"]
    *rows, last = killed(tmp_path, "--kills", 2, "--stages", *stages)
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in stages]
    assert last.endswith("| 2 of 2 |")
    # The other one does not wait for ever, and says why it ended.
    said = " ".join((tmp_path / "two.log").read_text().split())
    assert said.count("another process of this job has ended") == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills(tmp_path: Path) -> None:
    rows = killed(tmp_path, "--seed", 1)
    assert len(rows) == 11 and rows[-1].endswith("| 20 of 20 |")
