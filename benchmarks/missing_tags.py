"""What are labels worth when tags are missing, with and without trust in their absence?

    python benchmarks/missing_tags.py --root VOCdevkit/VOC2012 --split train_aug --without train \
        --classes cat,cow,dog,horse,person,sheep --absence 0.7 --out runs/missing

Of all tags `--share` is dropped at random, but never a photo's last one, once for each of
`--seeds`. On the same tags evidence is fitted as the recipe says and with `evidence.absence`, and
the labels, not refined, are scored on every third pixel of the photos; the difference is that of
pairs. Seed -1 drops nothing: what the option costs when tags are complete. `--also` names a split
whose photos join the fit and are not measured. So that a trial is cheap, features are averaged to
16 by 16 positions, in `--directions` principal directions, and `--set` makes the fit shorter, for
both.

What is done is kept in OUT/missing.json; OUT/missing.md holds the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from _paired import paired_difference
from stage1 import MEASURES, values
from torch import Tensor

from pgnn_geo.app.config import NETWORK, LabelConfig
from pgnn_geo.app.recipes import recipe_file
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.features import FrozenFeatureConfig, frozen_features
from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.run_folder import progress
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.labels.frozen import fit_evidence
from pgnn_geo.labels.seeds import seed_labels
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn.backbones import build_backbone

COMPLETE = -1  #: the seed that drops nothing
EVERY = 3  #: pixels of a mask


def photos_of(args: argparse.Namespace) -> list[TaggedDataset]:
    """The photos to measure on, and those that join the fit."""
    config = DataConfig("voc", args.root, args.split, args.classes)
    measured = config.build(with_masks=True)
    if args.without:
        out = set(replace(config, split=args.without).build().image_ids)
        kept = [i for i, name in enumerate(measured.image_ids) if name not in out]
        measured = measured.subset(kept)
    return [measured, *(replace(config, split=name).build() for name in args.also)]


def reduced(banks: Sequence[Any], directions: int) -> Tensor:
    """Features of all photos at 16 by 16 positions, in their principal directions."""
    side = banks[0].shape[-1]
    small = torch.cat(
        [
            F.avg_pool2d(bank[rows], max(1, side // 16)).half()
            for bank in banks
            for rows in torch.arange(len(bank)).split(16)
        ]
    )
    mean, channels = small.float().mean(dim=(0, 2, 3)), small.size(1)
    if directions >= channels:
        return small.float()

    def rows_of(part: Tensor) -> Tensor:
        return part.float().movedim(1, -1) - mean

    spread = torch.zeros(channels, channels)
    for part in small.split(16):
        x = rows_of(part).flatten(0, 2)
        spread += x.t() @ x
    axes = torch.linalg.eigh(spread)[1][:, -directions:]
    return torch.cat([(rows_of(part) @ axes).movedim(-1, 1) for part in small.split(16)])


class Inputs(NamedTuple):
    """What a measurement on frozen features starts from."""

    parts: list[TaggedDataset]  #: the photos that are measured, and those that join the fit
    tags: Tensor  #: of all of them :math:`(M, K)`, bool
    features: Tensor  #: see :func:`reduced`
    evidence: EvidenceConfig  #: that of the recipe, with the values of --set
    background: float | None  #: the recipe's score


def inputs(args: argparse.Namespace) -> Inputs:
    """Read the recipe and the photos that options name, and compute features once."""
    recipe = yaml.safe_load(recipe_file([f"--recipe={args.recipe}"]).read_text())
    frozen = FrozenFeatureConfig(**recipe.get("features", {}))
    parts = photos_of(args)
    assert all(part.tags is not None for part in parts)
    tags = torch.cat([part.tags for part in parts if part.tags is not None]).bool()
    backbone = build_backbone(args.backbone, NETWORK.defaults["weights"])
    banks = [
        frozen_features(backbone, part, args.out / f"features-{k}", frozen, progress)
        for k, part in enumerate(parts)
    ]
    evidence = EvidenceConfig(**{**recipe.get("evidence", {}), **values(args.set)})
    score = LabelConfig(**recipe.get("labels", {})).background
    return Inputs(parts, tags, reduced(banks, args.directions), evidence, score)


def dropped(tags: Tensor, share: float, seed: int) -> Tensor:
    """Tags of which a share is missing; each photo keeps one."""
    kept, pairs = tags.bool().clone(), tags.nonzero()
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    left, wanted = kept.sum(dim=1), int(share * len(pairs))
    for i, k in pairs[order].tolist():
        if wanted and left[i] > 1:
            kept[i, k] = False
            left[i] -= 1
            wanted -= 1
    return kept


def main() -> None:
    """Drop, fit, measure, write the table."""
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--root", required=True)
    cli.add_argument("--split", default="train")
    cli.add_argument("--without", help="a split whose photos are not measured")
    cli.add_argument("--also", nargs="*", default=[], help="splits that join the fit")
    cli.add_argument("--classes")
    cli.add_argument("--recipe", default="best", help="name or YAML file, of the frozen flow")
    cli.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="of its evidence")
    cli.add_argument("--absence", type=float, default=0.7)
    cli.add_argument("--share", type=float, default=0.2, help="of the tags that are dropped")
    cli.add_argument("--seeds", type=int, default=8)
    cli.add_argument("--directions", type=int, default=256)
    cli.add_argument("--backbone", default="vgg16")
    cli.add_argument("--out", type=Path, required=True)
    args = cli.parse_args()
    parts, tags, features, plain, score = inputs(args)
    measured = parts[0]
    count = len(measured)
    truth = [measured.read_mask(i) for i in range(count)]

    def measure(seed: int, config: EvidenceConfig) -> dict[str, float]:
        kept = tags if seed == COMPLETE else dropped(tags, args.share, seed)
        model = fit_evidence(features, kept, config)
        shown = model.with_missing(features, kept)
        added = shown & ~kept
        maps = model.maps(features[:count], shown[:count])
        matrix = ConfusionMatrix(len(measured.classes), measured.classes)
        for i, own in enumerate(maps.maps.split(shown[:count].sum(dim=1).tolist())):
            labels = shown[i].nonzero()[:, 0] + 1
            size = truth[i].shape[0], truth[i].shape[1]
            mask = seed_labels(own, size, labels, score)
            matrix.update(mask[::EVERY, ::EVERY], truth[i][::EVERY, ::EVERY])
        found = matrix.compute().to_dict()
        row = {name: 100 * found[name] for name in MEASURES}
        return row | {
            "missing": int((tags & ~kept).sum()),
            "added": int(added.sum()),
            "right": int((added & tags).sum()),
        }

    file = args.out / "missing.json"
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    configs = {"as it is": plain, "absence": replace(plain, absence=args.absence)}
    for seed in [COMPLETE, *range(args.seeds)]:
        for name, config in configs.items():
            if (key := f"{name}, {seed}") not in done:
                done[key] = measure(seed, config) | {"config": asdict(config)}
                with atomic_write(file) as handle:
                    handle.write(json.dumps(done, indent=1).encode())
                print(key, {k: v for k, v in done[key].items() if k != "config"}, flush=True)
    lines = [
        "| tags | evidence.absence | mIoU | P | R | missing | added | of them right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, seeds in (("complete", [COMPLETE]), ("missing", [*range(args.seeds)])):
        for name, setting in (("as it is", "null"), ("absence", str(args.absence))):
            rows = [done[f"{name}, {seed}"] for seed in seeds]
            means = {k: sum(row[k] for row in rows) / len(rows) for k in rows[0] if k != "config"}
            cells = [f"{means[k]:.1f}" for k in MEASURES]
            cells += [f"{means[k]:.0f}" for k in ("missing", "added", "right")]
            lines.append(f"| {title} | {setting} | {' | '.join(cells)} |")
    own, other = (
        {seed: done[f"{name}, {seed}"]["miou"] for seed in range(args.seeds)}
        for name in ("absence", "as it is")
    )
    if (gap := paired_difference(own, other)) is not None:
        half = "" if gap.half is None else f" ± {gap.half:.1f}"
        lines.append(f"\nDifference of mIoU over {gap.pairs} draws: {gap.mean:+.1f}{half}")
    with atomic_write(args.out / "missing.md") as handle:
        handle.write(("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
