"""Commands in two processes write what one writes; what goes wrong in one is said once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pgnn_geo.app.cli import main
from pgnn_geo.app.launch import check_alone
from pgnn_geo.errors import InputError
from pgnn_geo.ranks import BLOCKS, Ranks, blocks

RUN = [
    *("--network.backbone=vgg_tiny", "--features.size=64", "--segment=off", "--baseline=true"),
    *("--evidence.iterations=10", "--evidence.positions=512", "--labels.refine=par"),
    *("--evidence.whitening=0.1", "--evidence.evidence_window=3"),
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
KEPT = (".png", ".safetensors", ".npy", ".csv")
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def two(*command: str) -> subprocess.CompletedProcess[str]:
    port = f"--master_port={20000 + os.getpid() % 20000}"
    program = [*TORCHRUN, port, "-m", "pgnn_geo.app.cli", *command]
    return subprocess.run(program, capture_output=True, text=True, timeout=200, env=ENV)


def files(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.suffix in KEPT)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_two_processes_write_what_one_does(shapes_root: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the others: sums of several threads have another order
    try:
        main(["run", f"--root={shapes_root}", f"--out={tmp_path / 'one'}", *RUN])
    finally:
        torch.set_num_threads(threads)
    done = two("run", f"--root={shapes_root}", f"--out={tmp_path / 'two'}", *RUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pseudo-labels, train, 20 images") == 1
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "two")
    labels = [name for name in one if name.endswith(".png") and "/labels/" in name]
    assert len(labels) == 40 and "pgnn/model/model.safetensors" in one
    metrics = [(tmp_path / name / "metrics.json").read_text() for name in ("one", "two")]
    assert metrics[0] == metrics[1]
    assert not (tmp_path / "two" / "features").exists()


def test_what_all_would_say_is_said_once(tmp_path: Path) -> None:
    done = two("run", f"--root={tmp_path / 'none'}", f"--out={tmp_path / 'run'}", *RUN)
    assert done.returncode != 0
    assert done.stderr.count("pgnn-geo: error:") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("count, unit", [(1, 1), (20, 4), (64, 1), (1000, 4), (10582, 4)])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_all_photos_once(count: int, unit: int, size: int) -> None:
    cut = blocks(count, unit)
    assert len(cut) <= BLOCKS and all(block.start % unit == 0 for block in cut)
    shares = [Ranks(rank, size).share(cut) for rank in range(size)]
    assert [i for share in shares for block in share for i in block] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_command_for_one_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_alone("run")
    with pytest.raises(InputError, match="'segment' is for one process"):
        check_alone("segment")


def test_places_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that none of them is left in the end
        monkeypatch.delenv(name)
    step = {"NTASKS": 4, "PROCID": 3, "LOCALID": 1, "NODELIST": "n[1-2]", "JOB_ID": 7}
    for name, value in {**step, "NTASKS_PER_NODE": 2, "JOB_NAME": "work", "NODEID": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with pytest.raises(InputError, match="'segment' is for one process"):
        check_alone("segment")
    got = [os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")]
    assert got == ["4", "3", "1", "n1"]
