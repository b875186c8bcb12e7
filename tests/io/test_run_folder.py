"""What the stages of a run cost."""

import json
import time
from pathlib import Path

import pytest

from pgnn_geo.io.run_folder import recording, timed


def test_stages_are_recorded_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    with recording(path):
        with timed("sleep"):
            time.sleep(0.2)
        with timed(f"work {tmp_path}/labels"):
            (tmp_path / "big").write_bytes(bytes(100_000))
            start = time.process_time()
            while time.process_time() - start < 0.2:
                sum(range(10_000))
    sleep, work = json.loads(path.read_text())
    assert (sleep["stage"], work["stage"]) == ("sleep", "work labels")
    assert sleep["seconds"] >= 0.2 and sleep["processor_seconds"] < 0.15
    assert work["processor_seconds"] >= 0.19
    assert work["disk"] - sleep["disk"] >= 100_000
    assert work["peak_memory"] >= sleep["peak_memory"] > 1e6


def test_a_resumed_run_goes_on_and_what_failed_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    for fails in (False, True, False):
        with recording(path), pytest.raises(KeyError) if fails else recording(path):
            with timed("stage"):
                if fails:
                    raise KeyError
    assert len(json.loads(path.read_text())) == 2


def test_nothing_is_written_unless_asked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with recording(tmp_path / "cost.json"):
        pass
    with timed("stage"):
        pass
    assert list(tmp_path.iterdir()) == []
