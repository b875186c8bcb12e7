"""`benchmarks/gpu.sh` refuses a machine without a GPU, and works on one but for the card."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import BENCHMARKS


def gpu(*options: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(BENCHMARKS / "gpu.sh"), *map(str, options)]
    root = str(BENCHMARKS.parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHON": sys.executable, **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_no_gpu_is_one_line(tmp_path: Path) -> None:
    done = gpu("--root", tmp_path, "--out", tmp_path / "out", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and not list((tmp_path / "out").iterdir())
    assert done.stderr.strip().endswith("--device cpu tries the script on drawn photos")


@pytest.mark.parametrize(
    "options, words", [(["--speed", "9"], "unknown option"), (["--device", "tpu"], "not tpu")]
)
def test_other_options(options: list[str], words: str, tmp_path: Path) -> None:
    done = gpu("--out", tmp_path / "out", *options)
    assert done.returncode == 2 and words in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dry_run(tmp_path: Path) -> None:
    done = gpu("--device", "cpu", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "gpu.md").read_text()
    assert table.startswith("no GPU: a dry run") and "| vgg_tiny 64 8 | 40 | evidence |" in table
    assert (
        "train segmenter" in table and "The layer, edges:" in table and "TransformerConv" in table
    )
    again = gpu("--device", "cpu", "--out", tmp_path)
    assert again.returncode == 0 and (tmp_path / "gpu.md").read_text() == table
