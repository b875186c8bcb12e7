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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _common import machine
from _cost_tables import SETS, counts_table, features_table, plot, rates_table, sets_table
from _readme import replace_marked

from pgnn_geo.app.config import LabelConfig
from pgnn_geo.app.cost import Clock, measure_rates, predict_cost
from pgnn_geo.app.labelling import label_images
from pgnn_geo.datasets import VOC2012, TaggedDataset
from pgnn_geo.features import FrozenFeatureConfig, frozen_features
from pgnn_geo.io.files import write_json
from pgnn_geo.io.masks import save_maps, save_mask
from pgnn_geo.io.model_folder import sha256_of
from pgnn_geo.io.run_folder import peak_memory, processor_seconds, progress, recording, timed
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.labels.frozen import fit_evidence
from pgnn_geo.nn.backbones import BackboneSource, build_backbone
from pgnn_geo.precision import default_device

DOCS = Path(__file__).parents[1] / "docs"
#: Backbone, size and stride: the recipe's, and what is faster, or sees more.
SETTINGS = [
    *("vgg16 256 8", "vgg16 256 16", "vgg16 320 8", "resnet50 256 16", "convnext_tiny 256 16"),
    *("swin_t 256 16", "timm:vit_small_patch14_dinov2 256 16", "vgg_tiny 64 8"),
]
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
    tags = torch.rand(len(photos), classes, generator=generator) < (each - 1) / (classes - 1)
    tags[torch.arange(len(photos)), torch.arange(len(photos)) % classes] = True  # one at least
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
    source = BackboneSource(name, None)
    work, found = measure_rates(tagged, source, options, EVIDENCE, labels, clock=clock)
    return {"setting": setting, "of": of, "work": asdict(work), "rates": asdict(found)}


def counts(
    photos: TaggedDataset, setting: str, out: Path, refine: str, clock: Clock
) -> dict[str, Any]:
    """Stage 1, as a run does it, after its prediction."""
    name, size, stride = setting.split()
    options = FrozenFeatureConfig(size=int(size), stride=int(stride))
    source, labels = BackboneSource(name, "DEFAULT"), LabelConfig(refine=refine)
    work, found = measure_rates(photos, source, options, EVIDENCE, labels, clock=clock)
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
            cam = model.maps(bank, photos.tags, "evidence").maps
            save_maps(out / "labels" / "cam.npy", [cam])
            rows = model.maps(bank, photos.tags).maps
            maps = list(rows.split(photos.tags.bool().sum(dim=1).tolist()))
            for index, mask in enumerate(label_images(photos, maps, labels)):
                save_mask(out / "labels" / f"{index:07d}.png", mask)
            save_maps(out / "labels" / "maps.npy", maps)
        peaks["labels"] = own.peak
    disk = {
        "features": bank.path.stat().st_size,
        "evidence": 0,
        "labels": sum(path.stat().st_size for path in (out / "labels").glob("*.npy")),
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
    cases = [("rates", each, "VOC") for each in args.settings]
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
            replace_marked(args.page, f"cost {name}", f"{table(found)}\n\n{said}")
    found = [each for each in texts["counts"][0] if each["setting"] == args.count_setting]
    if args.readme and found:
        plot(sorted(found, key=lambda each: each["photos"]), args.figure)


if __name__ == "__main__":
    main()
