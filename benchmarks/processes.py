"""How much faster are two processes of one thread each than one? Features and labelling, in turns.

    python benchmarks/processes.py --root VOCdevkit/VOC2012 --photos 200

A model is fitted once. Then in each round the features and labels of the photos are made by one
process and by several, each time in an empty folder and with one thread; processes have started and
the model is read before the clock is. On a machine that is shared the processor time of the busiest
process says more, which is the other figure. OUT/processes.md has the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from pathlib import Path

import torch
from _common import machine
from _kills import CONTEXT, finish, places
from _ranked import work

from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.features import FrozenFeatureConfig
from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.labels.labeller import Labeller
from pgnn_geo.nn.backbones import BackboneSource

LABELS = {"classifier": {"background": 0.6, "refine": "par"}}


def fitted(args: argparse.Namespace, data: DataConfig) -> Path:
    """The folder of a model, fitted to the first photos unless it is there."""
    model = args.out / "model"
    if not model.is_dir():
        dataset = data.build()
        dataset = dataset.subset(range(min(32, len(dataset))))
        labeller = Labeller.fit(
            BackboneSource(args.backbone, "DEFAULT"),
            dataset,
            args.out / "bank",
            SupervisionLedger(tags="as given", weights="DEFAULT"),
            FrozenFeatureConfig(size=args.size),
            EvidenceConfig(iterations=10),
            LABELS,
        )
        labeller.save(model)
        shutil.rmtree(args.out / "bank")
    return model


def seconds(args: argparse.Namespace, data: DataConfig, model: Path, ranks: int) -> dict:
    """Seconds of each stage in so many processes."""
    out = args.out / "turn"
    shutil.rmtree(out, ignore_errors=True)
    processes = [
        CONTEXT.Process(target=work, args=(place, data, args.photos, model, out))
        for place in places(ranks)
    ]
    for process in processes:
        process.start()
    if any(codes := finish(processes)):
        raise SystemExit(f"{ranks} processes ended with {codes}")
    return json.loads((out / "seconds.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True, help="VOC layout")
    parser.add_argument("--split", default="train")
    parser.add_argument("--classes", help="with commas; all by default")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/processes"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = DataConfig("voc", args.root, args.split, args.classes)
    model = fitted(args, data)
    rounds, loads = [], []
    for number in range(args.rounds):
        loads.append(round(os.getloadavg()[0], 1))
        one, many = (seconds(args, data, model, ranks) for ranks in (1, args.processes))
        rounds.append((one, many))
        print(f"round {number + 1}, load {loads[-1]}: {one}, {args.processes}: {many}", flush=True)
    lines = [
        f"| stage | by | 1, s | {args.processes}, s | times as fast |",
        "|---|---|---|---|---|",
    ]
    for stage in rounds[0][0]:
        for by in ("clock", "processor"):
            pairs = [(one[stage][by], many[stage][by]) for one, many in rounds]
            one, many = map(statistics.median, zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            lines.append(f"| {stage} | {by} | {one:.2f} | {many:.2f} | {ratio:.2f} |")
    on = machine("cpu")
    said = f"{args.photos} photos, {args.backbone}, {args.rounds} rounds, load before {loads}"
    lines.append(f"\n({said}, {on['cpu']})")
    print("\n".join(lines))
    with atomic_write(args.out / "processes.md") as handle:
        handle.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
