"""Does a run survive SIGKILL? It is killed at seeded random moments, goes on, and is compared.

    python benchmarks/kills.py                                     # 20 kills, a table by stage
    python benchmarks/kills.py --kills 2 --stages features two:labelling

Runs on drawn photos: the frozen flow with both stages and exports, the trained flow, and stage 1 of
the frozen flow in two processes of which one is killed (stages that begin with `two:`; one process
or two go on). A moment is drawn evenly within a stage. What the second, undisturbed command leaves
must be byte for byte what a run leaves that nobody killed, and no other file. OUT/kills.md holds
the table.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from _kills import Killed, Stage, finish, killed, start, watched, written

from pgnn_geo.datasets import Shapes
from pgnn_geo.io.files import atomic_write

TINY = (
    *("--network.backbone=vgg_tiny", "--baseline=true", "--labels.refine=par"),
    *("--segment_network.backbone=vgg_tiny", "--segment_network.weights=null"),
    *("--segment_network.hidden_channels=32", "--segment_train.freeze_stages=1"),
    *("--segment_train.size=64", "--segment_train.crop=64", "--segment_train.epochs=2"),
    "--segment_train.workers=0",
)
FROZEN = (
    *TINY,
    *("--features.size=64", "--evidence.iterations=20", "--evidence.positions=1024"),
)
TRAINED = (
    *(*TINY, "--recipe=trained", "--segment=off", "--network.weights=null"),
    *("--network.freeze_stages=0", "--network.output_stride=8", "--train.size=64"),
    *("--train.epochs=2", "--train.completion_epochs=1", "--train.workers=0"),
    *("--maps.size=64", "--maps.partners=1", "--maps.output_stride=8"),
)


class Flow(NamedTuple):
    """A command, in how many processes, and its stages."""

    options: Sequence[str]
    ranks: int
    stages: Sequence[Stage]


FEATURES = Stage("features", "features/.frozen*.part", "features/frozen*.json")
FIT = Stage("fit", "features/frozen*.json", "pgnn/model")
LABELLING = Stage("labelling", "pgnn/model", "pgnn/labels/labels.json")
FLOWS = {
    "frozen": Flow(
        (*FROZEN, "--mutual=tags", "--export=coco,yolo"),
        1,
        (
            *(FEATURES, FIT, LABELLING),
            Stage("segmenter", "segmentation/tensorboard", "segmentation/segmenter"),
            Stage("report, export", "metrics.json", ""),
        ),
    ),
    "trained": Flow(
        TRAINED,
        1,
        (
            Stage("training", "cam/tensorboard", "pgnn/model"),
            Stage("labels of a network", "pgnn/model", "pgnn/labels/labels.json"),
        ),
    ),
    "two": Flow(
        (*FROZEN, "--segment=off"),
        2,
        tuple(each._replace(name=f"two:{each.name}") for each in (FEATURES, FIT, LABELLING)),
    ),
}


class Row(NamedTuple):
    """One kill."""

    stage: str
    killed: Killed
    victim: int
    again: int  #: processes that go on
    resumed: float  #: seconds
    wrong: str  #: empty if what was written is the same


class Harness:
    """Undisturbed runs, each made when it is first needed, and killed ones beside them."""

    def __init__(self, root: Path, out: Path, seed: int) -> None:
        self.root, self.out = root, out
        self.draw = random.Random(seed)
        self.seconds: dict[str, float] = {}
        self._whole: dict[str, dict[str, bytes]] = {}

    def whole(self, name: str) -> dict[str, bytes]:
        """What an undisturbed run writes; how long its stages take is kept."""
        if name not in self._whole:
            flow, folder = FLOWS[name], self.out / "run"
            processes = self._start(name)
            self.seconds |= watched(processes, folder, flow.stages)
            self._succeed(name, finish(processes))
            self._whole[name] = written(folder)
        return self._whole[name]

    def kill(self, name: str, stage: Stage) -> Row:
        """Kill a run once, let it go on, and compare."""
        whole, folder = self.whole(name), self.out / "run"
        victim, within = self.draw.randrange(FLOWS[name].ranks), self.draw.random()
        found, log = None, self.out / f"{name}.log"
        size = log.stat().st_size
        while found is None:  # a run that was faster than the first one is not killed in the stage
            os.truncate(log, size)  # what it said does not count
            delay = within * self.seconds[stage.name]
            found = killed(self._start(name), folder, stage, delay, victim)
            within *= 0.7
        again = self.draw.randint(1, FLOWS[name].ranks)  # processes that go on
        first = time.perf_counter()
        self._succeed(name, finish(self._start(name, again)))
        resumed, files = time.perf_counter() - first, written(folder)
        wrong = sorted(n for n in whole.keys() | files.keys() if whole.get(n) != files.get(n))
        if ended := [code for i, code in enumerate(found.processes) if i != victim and code != 2]:
            wrong.append(f"the other process ended with {ended[0]}")
        return Row(stage.name, found, victim, again, resumed, ", ".join(wrong))

    def _start(self, name: str, again: int | None = None) -> list[BaseProcess]:
        if again is None:  # always in the same folder: a report says which it is of
            shutil.rmtree(self.out / "run", ignore_errors=True)
        flow = FLOWS[name]
        command = ["run", f"--root={self.root}", f"--out={self.out / 'run'}", *flow.options]
        return start(command, self.out / f"{name}.log", again or flow.ranks)

    def _succeed(self, name: str, codes: list[int | None]) -> None:
        if any(codes):
            log = (self.out / f"{name}.log").read_text()
            raise SystemExit(f"a run of {name!r} ended with {codes}:\n{log[-4000:]}")


def table(rows: Sequence[Row], seconds: dict[str, float]) -> str:
    """Kills by stage as Markdown."""
    lines = [
        "| stage | s | kills | after its begin, s (which) | going on took, s (in) | same bytes |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row.stage for row in rows):
        own = [row for row in rows if row.stage == name]
        after = ", ".join(
            f"{row.killed.after:.2f}" + (f" (rank {row.victim})" if ":" in name else "")
            for row in own
        )
        took = ", ".join(
            f"{row.resumed:.1f}" + (f" ({row.again})" if ":" in name else "") for row in own
        )
        good = sum(not row.wrong for row in own)
        lines.append(
            f"| {name} | {seconds[name]:.1f} | {len(own)} | {after} | {took} | {good} of {len(own)}"
            " |"
        )
    good = sum(not row.wrong for row in rows)
    lines.append(f"| all | | {len(rows)} | | | {good} of {len(rows)} |")
    return "\n".join(lines)


def main() -> None:
    names = {stage.name: name for name, flow in FLOWS.items() for stage in flow.stages}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=names, default=list(names))
    parser.add_argument("--photos", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    args = parser.parse_args()
    root = args.out / "shapes"
    Shapes(root, "train", num_images=(args.photos, 4), size=64)
    harness, rows = Harness(root, args.out, args.seed), []
    for number in range(args.kills):
        name = args.stages[number % len(args.stages)]
        stage = next(each for each in FLOWS[names[name]].stages if each.name == name)
        row = harness.kill(names[name], stage)
        rows.append(row)
        print(f"{number + 1}. {name}, {row.killed.after:.2f} s: {row.wrong or 'same'}", flush=True)
    text = table(rows, harness.seconds)
    print(text)
    with atomic_write(args.out / "kills.md") as handle:
        handle.write(f"{text}\n".encode())
    sys.exit(any(row.wrong for row in rows))


if __name__ == "__main__":
    main()
