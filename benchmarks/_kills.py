"""Commands in processes of their own that are killed, and what they have written."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from multiprocessing import get_context, set_start_method
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from pgnn_geo.app.cli import main as cli

#: Files that say when and how long, or that only the training itself reads.
_DATED = ("cost.json", "tensorboard", "checkpoints")

#: A server that has imported everything: a process that it forks begins at once.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["pgnn_geo.app.cli"])

#: Seconds after which a process that should have ended hangs.
PATIENCE = 300.0


class Stage(NamedTuple):
    """A part of a run, known by the files that it leaves."""

    name: str
    begin: str  #: pattern of files below the run's folder that are there from its begin on
    end: str  #: that are there when it is done; empty for the end of the process

    def is_on(self, out: Path) -> bool:
        """Whether it has begun and is not done."""
        return _there(out, self.begin) and not (self.end and _there(out, self.end))


class Killed(NamedTuple):
    """A run that was killed."""

    after: float  #: seconds after the stage's begin
    processes: list[int | None]  #: how each process ended


def start(command: Sequence[str], log: Path, ranks: int = 1) -> list[BaseProcess]:
    """Start a command of the command line, in several processes that find each other."""
    processes = [
        CONTEXT.Process(target=_run, args=(list(command), log, place)) for place in places(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def places(ranks: int) -> list[dict[str, str]]:
    """Variables by which so many processes find each other; one needs none."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = {name: str(ranks) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    size |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**size, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def finish(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Wait until processes have ended; return how.

    Raises:
        TimeoutError: If one hangs; all are killed then.
    """
    last = time.perf_counter() + PATIENCE
    for process in processes:
        process.join(max(0.0, last - time.perf_counter()))
    if hanging := [process for process in processes if process.is_alive()]:
        for process in hanging:
            process.kill()
        raise TimeoutError(f"{len(hanging)} of {len(processes)} processes hang")
    return [process.exitcode for process in processes]


def watched(
    processes: Sequence[BaseProcess], out: Path, stages: Sequence[Stage]
) -> dict[str, float]:
    """Wait until a run is done; return the seconds that each stage took."""
    begin: dict[str, float] = {}
    end: dict[str, float] = {}
    while any(process.is_alive() for process in processes):
        now = time.perf_counter()
        for stage in stages:
            if stage.name not in begin and _there(out, stage.begin):
                begin[stage.name] = now
            if stage.end and stage.name not in end and _there(out, stage.end):
                end[stage.name] = now
        time.sleep(0.002)
    now = time.perf_counter()
    return {name: end.get(name, now) - first for name, first in begin.items()}


def killed(
    processes: Sequence[BaseProcess], out: Path, stage: Stage, delay: float, victim: int = 0
) -> Killed | None:
    """Kill one process of a run some time after a stage began; the others are to end by themselves.

    Returns:
        What happened; :obj:`None` if the stage was over before.
    """
    while not stage.is_on(out):
        if not any(process.is_alive() for process in processes):
            return None
        time.sleep(0.001)
    first = time.perf_counter()
    time.sleep(delay)
    hit = processes[victim].is_alive() and stage.is_on(out)
    processes[victim].kill()
    after = time.perf_counter() - first
    codes = finish(processes)
    return Killed(after, codes) if hit else None


def written(folder: Path) -> dict[str, bytes]:
    """What a run has written, all but the times of day and durations in it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part in _DATED for part in name.parts):
            data = path.read_bytes()
            files[str(name)] = re.sub(rb'"cost":\[[^]]*\]', b"", data)
    return files


def _run(command: list[str], log: Path, place: dict[str, str]) -> None:
    with open(log, "ab") as handle:
        for stream in (1, 2):
            os.dup2(handle.fileno(), stream)
    os.environ |= place
    torch.set_num_threads(1)
    set_start_method("fork", force=True)  # of loaders: another server would import all once more
    cli(command)


def _there(out: Path, pattern: str) -> bool:
    return next(out.glob(pattern), None) is not None
