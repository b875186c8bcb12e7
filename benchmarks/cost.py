"""What does stage 1 of the frozen flow take, and does the prediction of `doctor` hold?

    python benchmarks/cost.py --root VOCdevkit/VOC2012 --classes cat,cow,dog,horse,person,sheep \
        --out runs/cost

Three parts. Each case has a process of its own, and what is in OUT is not done again.

- `rates`: seconds and memory per photo of each backbone, size and stride, on a few photos, and what
  follows from them for 10,582 photos (VOC), 118,000 (COCO) and a million.
- `counts`: stage 1 of many photos, by links under new names, beside its prediction.
- `features`: the features alone, of many more; a killed one goes on with the same command.

Seconds are those of the processor, as of one thread on a machine that others use too; with
`--clock wall`, or a GPU, those of the clock. `--readme` puts the tables into docs/guide/cost.md and
the figure into docs/images.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _common import machine
from _readme import put

from pgnn_geo.app.config import LabelConfig, ModelConfig
from pgnn_geo.app.cost import Clock, Rates, Work, measure_rates, predict_cost
from pgnn_geo.app.labelling import label_images
from pgnn_geo.datasets import VOC2012, TaggedDataset
from pgnn_geo.features import FrozenFeatureConfig, frozen_features
from pgnn_geo.io.files import atomic_write, write_json
from pgnn_geo.io.masks import save_maps, save_mask
from pgnn_geo.io.run_folder import peak_memory, processor_seconds, progress, recording, timed
from pgnn_geo.io.tensor_folder import sha256_of
from pgnn_geo.labels.frozen import EvidenceConfig, fit_evidence
from pgnn_geo.nn.backbones import build_backbone
from pgnn_geo.precision import default_device

DOCS = Path(__file__).parents[1] / "docs"
#: Backbone, size and stride: the recipe's, and what is faster, or sees more.
SETTINGS = [
    *("vgg16 256 8", "vgg16 256 16", "vgg16 320 8", "resnet50 256 16", "convnext_tiny 256 16"),
    *("swin_t 256 16", "timm:vit_small_patch14_dinov2 256 16", "vgg_tiny 64 8"),
]
#: Photos, classes and tags of a photo of data sets that people have.
SETS = {"VOC": (10_582, 20, 1.5), "COCO": (118_000, 80, 2.9), "a million": (1_000_000, 80, 2.9)}
EVIDENCE = EvidenceConfig()


def repeated(photos: TaggedDataset, count: int, folder: Path) -> TaggedDataset:
    """So many photos, by links to those that there are."""
    assert photos.tags is not None
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"{i:07d}" for i in range(count)]
    links = [folder / f"{name}.jpg" for name in ids]
    for i, link in enumerate(links):
        if not link.is_symlink():
            link.symlink_to(photos.image_path(i % len(photos)).resolve())
    tags = photos.tags[torch.arange(count) % len(photos)]
    return TaggedDataset(ids, links, photos.classes, tags)


def tagged_like(photos: TaggedDataset, classes: int, each: float) -> TaggedDataset:
    """The photos with drawn tags of so many classes."""
    generator = torch.Generator().manual_seed(0)
    tags = torch.rand(len(photos), classes, generator=generator) < each / classes
    files = [photos.image_path(i) for i in range(len(photos))]
    names = [f"class {k}" for k in range(classes)]
    return TaggedDataset(photos.image_ids, files, names, tags.float())


class Own:
    """Memory of the process without pages of banks, which the system takes back when it needs room.

    What the process has of its own, and the pages of files that it had at the start: libraries.
    """

    def __init__(self) -> None:
        self.files, self.peak = _status("RssFile"), 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Look ten times a second."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.1):
                self.peak = max(self.peak, self.files + _status("RssAnon"))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _status(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def rates(photos: TaggedDataset, setting: str, of: str, clock: Clock) -> dict[str, Any]:
    """How fast a few photos go, with as many classes as a data set has."""
    name, size, stride = setting.split()
    options = FrozenFeatureConfig(size=int(size), stride=int(stride))
    tagged = tagged_like(photos, *SETS[of][1:])
    labels = LabelConfig(refine="par")
    network = ModelConfig(name, None)
    work, found = measure_rates(tagged, network, options, EVIDENCE, labels, clock=clock)
    return {"setting": setting, "of": of, "work": asdict(work), "rates": asdict(found)}


def counts(
    photos: TaggedDataset, setting: str, out: Path, refine: str, clock: Clock
) -> dict[str, Any]:
    """Stage 1, as a run does it, after its prediction."""
    name, size, stride = setting.split()
    options, network = FrozenFeatureConfig(size=int(size), stride=int(stride)), ModelConfig(name)
    labels = LabelConfig(refine=refine)
    work, found = measure_rates(photos, network, options, EVIDENCE, labels, clock=clock)
    assert photos.tags is not None
    backbone = build_backbone(name)
    peaks, own = {}, Own()
    with recording(out / "cost.json"):
        with own.watch(), timed("features"):
            bank = frozen_features(backbone, photos, out / "features", options, progress)
        peaks["features"], own.peak = own.peak, 0
        with own.watch(), timed("evidence"):
            model = fit_evidence(bank, photos.tags, EVIDENCE)
        peaks["evidence"], own.peak = own.peak, 0
        with own.watch(), timed("labels"):
            rows = model.maps(bank, photos.tags).maps
            maps = list(rows.split(photos.tags.bool().sum(dim=1).tolist()))
            for index, mask in enumerate(label_images(photos, maps, labels)):
                save_mask(out / "labels" / f"{index:07d}.png", mask)
            save_maps(out / "labels" / "maps.npy", maps)
        peaks["labels"] = own.peak
    disk = {
        "features": bank.path.stat().st_size,
        "evidence": 0,
        "labels": (out / "labels" / "maps.npy").stat().st_size,
    }
    taken = "processor_seconds" if clock is processor_seconds else "seconds"
    stages = json.loads((out / "cost.json").read_text())
    took = [
        {
            "stage": cost.stage,
            "seconds": [cost.seconds, stage[taken]],
            "disk": [cost.disk, disk[cost.stage]],
            "memory": [cost.memory, peaks[cost.stage]],
        }
        for cost, stage in zip(predict_cost(work, found), stages, strict=True)
    ]
    masks = sum(path.stat().st_size for path in (out / "labels").glob("*.png"))
    shutil.rmtree(out)
    return {"setting": setting, "photos": len(photos), "stages": took, "label images": masks}


def features(
    photos: TaggedDataset, setting: str, out: Path, marks: list[int], clock: Clock
) -> dict[str, Any]:
    """The features alone, going on where a killed process stopped; memory at some numbers."""
    name, size, stride = setting.split()
    options = FrozenFeatureConfig(size=int(size), stride=int(stride))
    held: dict[int, int | None] = {}

    def watched(batches: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        for done, batch in enumerate(progress(batches, title, total), len(photos) - total + 1):
            yield batch
            if done in marks or done == len(photos):
                held[done] = peak_memory()

    start = clock()
    bank = frozen_features(build_backbone(name), photos, out, options, watched)
    return {
        "setting": setting,
        "photos": len(photos),
        "seconds": clock() - start,
        "bank": bank.path.stat().st_size,
        "sha256": sha256_of(bank.path),
        "held": held,
    }


def done(out: Path, part: str) -> list[dict[str, Any]]:
    """What is there of a part."""
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"{part}-*.json"))]


def rates_table(found: list[dict[str, Any]]) -> str:
    """What one photo takes."""
    rows = []
    for each in found:
        work, rate = Work(**each["work"]), Rates(**each["rates"])
        name, size, stride = each["setting"].split()
        rows.append(
            {
                "backbone": f"`{name}`",
                "size": size,
                "stride": stride,
                "classes": work.classes,
                "features, ms": f"{1e3 * rate.features:,.0f}",
                "a propagation, ms": f"{1e3 * rate.within:,.1f}",
                "a pass, ms": f"{1e3 * rate.scored:,.1f}",
                "label, ms": f"{1e3 * rate.labels:,.0f}",
                "fit of the classifier, s": f"{_classifier(work, rate):,.0f}",
                "disk, kB": f"{2 * work.channels * work.side**2 / 1e3:,.0f}",
                "memory, MB": f"{(rate.memory or 0) / 1e6:,.0f}",
            }
        )
    return markdown(rows)


def _classifier(work: Work, rate: Rates) -> float:
    config = work.evidence
    return config.classifier_rounds * config.iterations * config.positions * rate.position


def sets_table(found: list[dict[str, Any]]) -> str:
    """What follows for whole data sets."""
    rows = []
    for name, (count, classes, each_tags) in SETS.items():
        for each in found:
            work, rate = Work(**each["work"]), Rates(**each["rates"])
            if work.classes != classes:
                continue
            costs = predict_cost(replace(work, photos=count, tags=round(count * each_tags)), rate)
            backbone, size, stride = each["setting"].split()
            memory = max(cost.memory or 0 for cost in costs)
            rows.append(
                {
                    "photos": f"{name}, {count:,}",
                    "backbone": f"`{backbone}`",
                    "size": size,
                    "stride": stride,
                    **{cost.stage: f"{cost.seconds / 3600:,.1f} h" for cost in costs},
                    "disk": f"{sum(cost.disk for cost in costs) / 1e9:,.1f} GB",
                    "memory": f"{memory / 1e9:,.1f} GB",
                }
            )
    return markdown(rows)


def counts_table(found: list[dict[str, Any]]) -> str:
    """Predicted, and as it was."""
    rows = [
        {
            "backbone, size, stride": each["setting"],
            "photos": f"{each['photos']:,}",
            "stage": stage["stage"],
            "seconds, predicted": f"{stage['seconds'][0]:,.1f}",
            "seconds": f"{stage['seconds'][1]:,.1f}",
            "disk, predicted": f"{stage['disk'][0]:,}",
            "disk": f"{stage['disk'][1]:,}",
            "memory, predicted": f"{(stage['memory'][0] or 0) / 1e6:,.0f} MB",
            "memory": f"{stage['memory'][1] / 1e6:,.0f} MB",
        }
        for each in found
        for stage in each["stages"]
    ]
    return markdown(rows)


def features_table(found: list[dict[str, Any]]) -> str:
    """Memory by how far the features were."""
    rows = [
        {
            "photos": f"{each['photos']:,}",
            "done": f"{int(mark):,}",
            "peak memory": f"{peak / 1e6:,.1f} MB",
        }
        for each in found
        for mark, peak in each["held"].items()
    ]
    return markdown(rows)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of the same columns as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory of each stage over the number of photos: predicted, and as they were."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(f"{found[0]['setting']}, seconds by the {found[0]['machine']['clock']}")
    photos = [each["photos"] for each in found]
    for column, (what, label, unit) in enumerate(
        (("seconds", "seconds", 1), ("memory", "memory, MB", 1e6)), 1
    ):
        axes = figure.add_subplot(1, 2, column, xscale="log", yscale="log")
        axes.set(xlabel="photos", ylabel=label)
        for i, stage in enumerate(found[0]["stages"]):
            values = [each["stages"][i][what] for each in found]
            axes.plot(photos, [want / unit for want, _ in values], "--", color=f"C{i}")
            name = stage["stage"]
            axes.plot(photos, [got / unit for _, got in values], "o", color=f"C{i}", label=name)
        axes.grid(which="both", alpha=0.2)
        axes.legend(title="dashed: predicted", fontsize="small")
    with atomic_write(path) as handle:
        figure.savefig(handle, format="png", dpi=120)


def one(args: argparse.Namespace) -> None:
    """Do one case in this process."""
    part, setting, of = args.one
    wall = args.clock == "wall" or torch.cuda.is_available()
    clock = time.perf_counter if wall else processor_seconds
    photos = VOC2012(args.root, args.split, args.classes)
    if part == "rates":
        found = rates(photos, setting, of, clock)
    else:
        photos = repeated(photos, int(of), args.out / "links")
        folder = args.out / f"{part}-{_file(setting)}-{of}"
        if part == "counts":
            found = counts(photos, setting, folder, args.refine, clock)
        else:
            found = features(photos, setting, folder, args.marks, clock)
    found["machine"] = machine(default_device()) | {"clock": "wall" if wall else "processor"}
    write_json(args.out / f"{part}-{_file(setting)}-{of}.json", found)


def _file(setting: str) -> str:
    return setting.replace(" ", "-").replace(":", "-")


def main() -> None:
    """Do what is not there yet, and write the tables."""
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--root", required=True)
    cli.add_argument("--split", default="train")
    cli.add_argument("--classes")
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument(
        "--settings", nargs="*", default=SETTINGS, help="'BACKBONE SIZE STRIDE', rates"
    )
    cli.add_argument("--counts", nargs="*", type=int, default=[437, 2000, 10_582])
    cli.add_argument("--count-setting", default="vgg_tiny 64 8", help="of the counts")
    cli.add_argument("--refine", default="none", help="of the labels of the counts")
    cli.add_argument("--features", nargs="*", type=int, default=[5000, 20_000, 40_000])
    cli.add_argument("--feature-setting", default="vgg_tiny 32 16", help="of the features alone")
    cli.add_argument("--marks", nargs="*", type=int, default=[5000, 20_000, 40_000])
    cli.add_argument("--clock", choices=["processor", "wall"], default="processor")
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--readme", action="store_true", help="tables and figure into the docs")
    cli.add_argument("--page", type=Path, default=DOCS / "guide" / "cost.md")
    cli.add_argument("--figure", type=Path, default=DOCS / "images" / "cost.png")
    cli.add_argument("--one", nargs=3, metavar=("PART", "SETTING", "OF"), help="(internal)")
    args = cli.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        return one(args)
    cases = [("rates", each, of) for each in args.settings for of in ("VOC", "COCO")]
    cases += [("counts", args.count_setting, str(count)) for count in args.counts]
    cases += [("features", args.feature_setting, str(count)) for count in args.features]
    for part, setting, of in cases:
        if not (args.out / f"{part}-{_file(setting)}-{of}.json").is_file():
            print(part, setting, of, flush=True)
            command = [sys.executable, __file__, *sys.argv[1:], "--one", part, setting, of]
            subprocess.run(command, check=True)
    parts = {"rates": rates_table, "counts": counts_table, "features": features_table}
    texts = {part: (done(args.out, part), table) for part, table in parts.items()}
    texts["sets"] = texts["rates"][0], sets_table
    for name, (found, table) in texts.items():
        if not found:
            continue
        found = sorted(found, key=lambda each: each.get("photos", 0))
        about = found[0]["machine"]
        on = about.get("gpu") or f"{about['threads']} thread(s) of {about['cpu']}"
        said = f"({on}, torch {about['torch']}, seconds by the {about['clock']})"
        print(f"{name}\n{table(found)}\n{said}\n")
        if args.readme:
            put(args.page, f"cost {name}", f"{table(found)}\n\n{said}")
    found = [each for each in texts["counts"][0] if each["setting"] == args.count_setting]
    if args.readme and found:
        plot(sorted(found, key=lambda each: each["photos"]), args.figure)


if __name__ == "__main__":
    main()
