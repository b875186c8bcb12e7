"""Does a graph across photos that is trained gain anything, and what is left without its partners?

    python benchmarks/across.py --root VOCdevkit/VOC2012 --split extra --also train \
        --recipe many --out runs/across

For each of `--seeds` the recipe is fitted to another random 80 % of all photos. To the scores that
its classifier gives a position of a photo, graphs across photos add what they are trained to, zero
at first: messages of class evidence along a frozen kernel with a learned gate, centres of classes
that are learned, edges that classify the tags two photos share, and the paper's layer between
photos of a class, with a softmax or with transport. The signals are the labels that the classifier
learned from; that no position is of a class its photo has no tag of; and that each tag is seen at
a tenth of the positions or more. Tags of the photos that are left out choose the step to stop at.

Beside them stand the kill tests, trained alike: random partners, positions of the own photo alone,
a linear map of equal width. mIoU on the photos of `--split`, every fourth pixel, not refined, each
row at the score that is best for it in the mean; the differences to the base are of pairs.

Features are averaged to 16 by 16 positions, in `--directions` principal directions. What is done is
kept in OUT/across.json; OUT/across.md holds the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from _across_graphs import Draw, Edges, Gate, Graph, Layer, Linear, Memory
from _paired import paired_difference
from missing_tags import inputs
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.io.files import atomic_write
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.labels.frozen import EvidenceModel, fit_evidence
from pgnn_geo.labels.objectness import fit_objectness, on_objects
from pgnn_geo.labels.position_classifier import confident_labels
from pgnn_geo.labels.propagation import complete
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn.propagation import centered_unit

EVERY = 4  #: pixels of a mask
SCORES = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
SHARE, DECAY, CHECK = 0.1, 1e-3, 20

#: What is trained by row of the table; the first is the base itself.
ROWS: dict[str, Callable[[Draw], Graph] | None] = {
    "base": None,
    "linear map": Linear,
    "gate": Gate,
    "gate, random partners": lambda draw: Gate(draw, "random"),
    "gate, own photo": lambda draw: Gate(draw, "own"),
    "memory": Memory,
    "memory, random labels": lambda draw: Memory(draw, "random"),
    "edges": Edges,
    "edges, random tags": lambda draw: Edges(draw, "random"),
    "layer": Layer,
    "layer, transport": lambda draw: Layer(draw, normalize="sinkhorn"),
    "layer, random partners": lambda draw: Layer(draw, "random"),
    "layer, own photo": lambda draw: Layer(draw, "own"),
    "layer, linear map": lambda draw: Layer(draw, normalize="none"),
    "kernel, not trained": lambda draw: Gate(draw, weight=2.0),
}


def base_of(features: Tensor, tags: Tensor, fitted: Tensor, config: EvidenceConfig) -> Any:
    """Fit the recipe to some photos; return the model and the labels it is sure of in all."""
    model = fit_evidence(features[fitted], tags[fitted], config)
    assert model.propagation.mean is not None
    mean_, parts = model.propagation.mean, []
    for part in (fitted, torch.ones_like(fitted)):
        maps = model.maps(features[part], tags[part], "classifier")
        parts.append(maps.with_maps(maps.maps))
    if config.objectness:
        thresholds = config.foreground, config.background, config.balance
        weight = fit_objectness(features[fitted], parts[0], mean_, *thresholds)
        step = on_objects(weight, model.propagation)
        parts[1] = complete(features, parts[1], [step])
    dense = parts[1].dense(torch.arange(len(tags))).flatten(2).mT
    own = tags[:, None].expand(-1, dense.size(1), -1)
    sure = confident_labels(
        dense.flatten(0, 1), own.flatten(0, 1), config.foreground, config.background
    )
    return model, sure.view(dense.shape[:2])


def signals(draw: Draw, photos: Tensor, scores: Tensor) -> Tensor:
    """What tags say of scores [b, n, K + 1]: what is absent, and that what is present is seen."""
    log = scores.log_softmax(dim=2)
    absent = -log.masked_fill(draw.outside[photos][:, None], -1e9).logsumexp(dim=2).mean()
    most = log[..., 1:].topk(max(1, round(SHARE * log.size(1))), dim=1).values
    tags = draw.tags[photos].float()
    present = (most.logsumexp(dim=1) - torch.tensor(most.size(1)).log()) * tags
    return torch.stack([absent, -present.sum() / tags.sum()])


def train(graph: Graph, steps: int, batch: int = 32, count: int = 24) -> str:
    """Train a graph; keep the weights that tags of the other photos find best, and say when."""
    draw, random = graph.draw, graph.draw.generator(2)
    photos = draw.fitted.nonzero()[:, 0]
    others = (~draw.fitted).nonzero()[:, 0]
    held = torch.randint(draw.units.size(1), (len(others), 32), generator=random)
    number = torch.bincount(draw.labels[draw.labels >= 0], minlength=graph.labels).clamp(min=1)
    layer = isinstance(graph, Layer)
    optimizer = torch.optim.Adam(graph.parameters(), 3e-3 if layer else 1e-2)

    def loss(scores: Tensor, own: Tensor, nodes: Tensor) -> Tensor:
        label = draw.labels[own[:, None], nodes]
        weight = (label >= 0) * number[label.clamp(min=0)] ** -0.5
        entropy = F.cross_entropy(
            scores.flatten(0, 1), label.clamp(min=0).flatten(), reduction="none"
        )
        seeds = (entropy.view_as(weight) * weight).sum() / weight.sum().clamp(min=1e-9)
        absent, present = signals(draw, own, scores)
        return seeds + 0.3 * absent + 0.1 * present

    best, kept, at, first = float("inf"), graph.state_dict(), 0, 0.0
    for step in range(steps + 1):
        if step % CHECK == 0:
            graph.eval()
            with torch.no_grad():
                absent, present = signals(draw, others, graph(others, held)[0])
            now = (absent + 0.3 * present).item()
            first = first or now
            if now < best:
                kept = {name: value.clone() for name, value in graph.state_dict().items()}
                best, at = now, step
        if step == steps:
            break
        graph.train()
        own = photos[torch.randperm(len(photos), generator=random)[:batch]]
        nodes = torch.randint(draw.units.size(1), (len(own), count), generator=random)
        scores, messages = graph(own, nodes)
        total = loss(scores, own, nodes) + DECAY * graph.size()
        total = total + 0.3 * graph.edge_loss(own, nodes)
        if messages is not None:
            total = total + loss(messages, own, nodes)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    graph.load_state_dict(kept)
    return f"step {at}, tags of the others {first:.3f} to {best:.3f}"


@torch.no_grad()
def scores_of(draw: Draw, graph: Graph | None, count: int) -> Tensor:
    """Return the scores of the first photos [count, N, K + 1]."""
    if graph is None:
        return draw.scores[:count]
    graph.eval()
    nodes = torch.arange(draw.units.size(1)).expand(count, -1)
    parts = torch.arange(count).split(2)
    return torch.cat([graph(photos, nodes[photos])[0] for photos in parts])


@torch.no_grad()
def measure(
    model: EvidenceModel, features: Tensor, draw: Draw, scores: Tensor, photos: TaggedDataset
) -> list[float]:
    """Return mIoU at each of the background scores, after evidence has travelled in the photo."""
    count, side = len(scores), features.shape[-1]
    shown = scores.masked_fill(draw.outside[:count, None], -torch.inf).softmax(dim=2)
    shown = shown[..., 1:].mT.unflatten(2, (side, side))
    tags = draw.tags[:count]
    maps = complete(
        features[:count],
        TaggedMaps.empty(tags, side),
        [lambda g, _: model.propagation(g.nodes(shown[g.photos]), g.x, batch=g.batch.batch)],
        confidence=model.config.confidence,
    )
    found = [ConfusionMatrix(len(photos.classes), photos.classes) for _ in SCORES]
    for i, own in enumerate(maps.maps.split(tags.sum(dim=1).tolist())):
        truth = photos.read_mask(i)
        size = (truth.shape[0], truth.shape[1])
        wide = F.interpolate(own[None], size, mode="bilinear")[0, :, ::EVERY, ::EVERY]
        peak, kind = wide.max(dim=0)
        label = tags[i].nonzero()[:, 0][kind] + 1
        for matrix, score in zip(found, SCORES, strict=True):
            matrix.update(torch.where(peak > score, label, 0), truth[::EVERY, ::EVERY])
    return [100 * matrix.compute().miou for matrix in found]


def table(done: dict[str, dict[str, Any]]) -> str:
    """Means, each at its best score, and the paired differences to the base."""
    own: dict[str, dict[int, list[float]]] = {}
    for key, value in done.items():
        name, _, seed = key.rpartition("; ")
        own.setdefault(name, {})[int(seed)] = value["miou"]
    lines = ["| row | mIoU | score | difference | draws |", "|---|---|---|---|---|"]
    reference: dict[int, float] = {}
    for name, curves in own.items():
        means = [mean(column) for column in zip(*curves.values(), strict=True)]
        best = max(range(len(SCORES)), key=means.__getitem__)
        figures = {seed: curve[best] for seed, curve in curves.items()}
        reference = reference or figures
        gap = paired_difference(figures, reference)
        said = ""
        if gap is not None and figures is not reference:
            said = f"{gap.mean:+.1f}" + ("" if gap.half is None else f" ± {gap.half:.1f}")
        lines.append(f"| {name} | {means[best]:.1f} | {SCORES[best]} | {said} | {len(figures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw, fit, train, measure, write the table."""
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--root", required=True)
    cli.add_argument("--split", default="extra", help="photos to measure on, with masks")
    cli.add_argument("--also", nargs="*", default=[], help="splits that join the fit")
    cli.add_argument("--classes")
    cli.add_argument("--recipe", default="many", help="name or YAML file, of the frozen flow")
    cli.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="of its evidence")
    cli.add_argument("--rows", nargs="*", choices=ROWS, default=[*ROWS])
    cli.add_argument("--seeds", type=int, default=8)
    cli.add_argument("--steps", type=int, default=140)
    cli.add_argument("--directions", type=int, default=256)
    cli.add_argument("--backbone", default="vgg16")
    cli.add_argument("--out", type=Path, required=True)
    cli.set_defaults(without=None)
    args = cli.parse_args()
    parts, tags, features, config, _ = inputs(args)

    file = args.out / "across.json"
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    names = ["base", *(name for name in args.rows if name != "base")]
    for seed in range(args.seeds):
        todo = [name for name in names if f"{name}; {seed}" not in done]
        if not todo:
            continue
        order = torch.randperm(len(tags), generator=torch.Generator().manual_seed(100 + seed))
        fitted = torch.zeros(len(tags), dtype=torch.bool)
        fitted[order[: int(0.8 * len(tags))]] = True
        model, sure = base_of(features, tags, fitted, config)
        units = centered_unit(features, model.propagation.mean[:, None, None], dim=1)
        units = units.flatten(2).mT.contiguous()
        scores = units @ model.classifier[:, :-1].t() + model.classifier[:, -1]
        draw = Draw(units, scores, sure, tags, fitted, seed)
        for name in todo:
            make = ROWS[name]
            graph = None if make is None else make(draw)
            short = args.steps // 2 if isinstance(graph, Layer) else args.steps
            told = "" if graph is None or "not trained" in name else train(graph, short)
            found = measure(model, features, draw, scores_of(draw, graph, len(parts[0])), parts[0])
            done[f"{name}; {seed}"] = {"miou": found, "training": told}
            with atomic_write(file) as handle:
                handle.write(json.dumps(done, indent=1).encode())
            print(seed, name, [round(value, 1) for value in found], told, flush=True)
    with atomic_write(args.out / "across.md") as handle:
        handle.write(table(done).encode())
    print(table(done))


if __name__ == "__main__":
    main()
