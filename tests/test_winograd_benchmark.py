"""benchmarks/winograd.py as its user starts it."""

import json
from pathlib import Path

from scripts import run_benchmark


def test_a_layer_beside_pytorch_s(tmp_path: Path) -> None:
    run_benchmark("winograd", "--quick", "--threads", 1, "--seconds", 0.05, "--out", tmp_path)
    fast, slow = json.loads((tmp_path / "winograd.json").read_text())["cases"]
    assert (fast["rival"], slow["rival"]) == ("Winograd", "PyTorch")
    assert 0 < fast["error"] < 2e-4
    assert slow["ratio"] == 1
