"""What does propagation add to the time of labelling?

    python benchmarks/propagation.py --root VOCdevkit/VOC2012 --images 32 --threads 1

The reference is the trunk's own pass over the photos: reading them, the frozen stages, the last
ones as trained and as pretrained, of each photo and its mirror image; and the same where training
has left the output of the frozen stages on disk. Its features go into a bank; then each kind of
propagation completes random maps on it, in turns with the trunk. Random weights: they do not change
the cost. Without --root the photos are drawn shapes of the same size.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import Report, Timing, parser, peak_bytes
from torch import Tensor

from pgnn_geo.app.config import NETWORK
from pgnn_geo.datasets import Shapes, TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.stems import stem_bank, stem_batches
from pgnn_geo.features.views import View
from pgnn_geo.labels.propagation import PropagationName, propagate
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.nn.backbones import Backbone, build_backbone
from pgnn_geo.precision import autocast

KINDS: tuple[PropagationName, ...] = ("within", "prototypes", "both")


def outputs(
    trained: Backbone,
    reference: Backbone,
    photos: TaggedDataset,
    size: int,
    stems: Path | None = None,
) -> Iterator[Tensor]:
    """Yields the features of all photos as labelling makes them, :obj:`[b, C, h, w]`."""
    streams = []
    for view in (View(size), View(size, flip=True)):
        kept = None if stems is None else stem_bank(trained, photos, stems, view)
        streams.append(stem_batches(trained, photos, view, kept))
    for pair in zip(*streams, strict=True):
        levels = []
        for stem, flip in zip(pair, (False, True), strict=True):
            with autocast("auto", stem.device):
                trained.levels(stem)
                levels.append([x.flip(-1) if flip else x for x in reference.levels(stem)])
        mean = [(a.float() + b.float()) / 2 for a, b in zip(*levels, strict=True)]
        yield torch.cat([F.normalize(x, dim=1) for x in mean], dim=1)


def random_maps(tags: Tensor, side: int) -> TaggedMaps:
    """Maps of the tagged classes; what is in them does not change the cost."""
    maps = TaggedMaps.empty(tags, side)
    return maps.with_maps(torch.rand_like(maps.maps))


def clocks() -> tuple[float, float]:
    """The wall clock, and the processor's time of this process and its finished children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(u.ru_utime + u.ru_stime for u in usage)


def seconds_per_photo(
    rivals: dict[str, Callable[[], Any]], photos: int, rounds: int
) -> dict[str, tuple[Timing, Timing]]:
    """Wall and processor time per photo of all rivals in turns, after one call to warm up."""
    out = {name: (Timing(), Timing()) for name in rivals}
    for number in range(-1, rounds):
        for name, rival in rivals.items():
            before = clocks()
            rival()
            for timing, start, end in zip(out[name], before, clocks(), strict=True):
                if number >= 0:
                    timing.by_round[number] = (end - start) / photos
    return out


def main() -> None:
    """Runs the case."""
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--root", help="the VOC2012 folder; drawn shapes if not given")
    options.add_argument("--split", default="train", help="split of VOC")
    options.add_argument("--classes", help="comma-separated names")
    options.add_argument("--tags", default="auto", help="source of the tags, see VOC2012")
    options.add_argument("--images", type=int, default=32, help="so many photos, evenly spread")
    options.add_argument("--size", type=int, default=256, help="side of the photos in pixels")
    options.add_argument("--rounds", type=int, default=5, help="measurements of each rival")
    frozen = NETWORK.defaults["freeze_stages"]
    options.add_argument("--frozen", type=int, default=frozen, help="stages")
    args = options.parse_args()
    if args.quick:
        args.images, args.size = min(args.images, 16), 128
    report = Report("propagation", args)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="propagation-") as folder, torch.inference_mode():
        photos: TaggedDataset
        if args.root is None:
            photos = Shapes(Path(folder) / "shapes", "train", (args.images, 1), args.size)
        else:
            photos = DataConfig("voc", args.root, args.split, args.classes, args.tags).build()
            kept = torch.linspace(0, len(photos) - 1, min(args.images, len(photos)))
            photos = photos.subset(kept.round().long().tolist())
        trained, reference = (
            build_backbone("vgg16", None, 16, args.frozen).to(args.device).eval() for _ in range(2)
        )
        batches = outputs(trained, reference, photos, args.size)
        bank = FeatureBank.build(
            Path(folder) / "features.npy", lambda first: batches, len(photos), {}
        )
        assert photos.tags is not None
        start = random_maps(photos.tags.bool(), bank.shape[-1])

        def completion(kind: PropagationName) -> Callable[[], Any]:
            return lambda: propagate(kind, bank, start, 2.0, args.device)

        rivals: dict[str, Callable[[], Any]] = {
            "trunk": lambda: deque(outputs(trained, reference, photos, args.size), 0),
            "trunk, frozen stages on disk": lambda: deque(
                outputs(trained, reference, photos, args.size, Path(folder)), 0
            ),
        }
        rivals |= {kind: completion(kind) for kind in KINDS}
        timings = seconds_per_photo(rivals, len(photos), args.rounds)
        for name, (wall, cpu) in timings.items():
            report.cases.append(
                {
                    "rival": name,
                    "photos": len(photos),
                    "maps": len(start.maps),
                    "ms / photo": 1e3 * wall.median,
                    "iqr": 1e3 * wall.iqr,
                    "cpu ms / photo": 1e3 * cpu.median,
                    "cpu iqr": 1e3 * cpu.iqr,
                    "photos / s": 1 / wall.median,
                    "of the trunk": wall.ratio(timings["trunk"][0]),
                    "of its cpu": cpu.ratio(timings["trunk"][1]),
                    "peak MB": peak_bytes(rivals[name], args.device) / 1e6,
                }
            )
    print(report.table())
    report.write()


if __name__ == "__main__":
    main()
