"""A sample of photos with the edges to every position, small enough for a page."""

import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.features import View, photo_batches
from pgnn_geo.inference.explanation import edge_weights, evidence_nodes, partners_of, patch_edges
from pgnn_geo.io.files import atomic_write
from pgnn_geo.labels.maps import MapConfig
from pgnn_geo.labels.propagation import Propagated
from pgnn_geo.nn import PGNN, ClassPrototypes

#: Photos that are explained, partners of each, and the most nodes per side that are told apart.
PHOTOS, PARTNERS, SIDE, PARTNER_SIDE = 12, 3, 16, 8


class Sample(NamedTuple):
    """Photos that are explained for a class each, with their partners: a data set of its own."""

    photos: list[int]  #: of the whole data set
    groups: list[list[int]]  #: places in :obj:`photos`: the photo itself, then its partners
    labels: list[int]  #: class of each group


def choose_sample(tags: Tensor, count: int = PHOTOS, partners: int = PARTNERS) -> Sample:
    """Choose photos of every class in turn, spread evenly over those that have it.

    Args:
        tags (torch.Tensor): Multi-hot tags :obj:`[M, K]`.
        count (int): The most photos that are explained. (default: :obj:`12`)
        partners (int): The most partners of each. (default: :obj:`3`)
    """
    having = [column.nonzero()[:, 0].tolist() for column in tags.bool().unbind(1)]
    turns = -(-count // max(1, sum(map(bool, having))))
    chosen = [
        (members[turn * len(members) // turns], label)
        for turn in range(turns)
        for label, members in enumerate(having)
        if turn < len(members)
    ][:count]
    groups = [[i, *partners_of(tags.bool(), i, label, partners)] for i, label in chosen]
    photos = sorted({i for group in groups for i in group})
    place = {i: number for number, i in enumerate(photos)}
    labels = [label for _, label in chosen]
    return Sample(photos, [[place[i] for i in group] for group in groups], labels)


@torch.no_grad()
def explain_propagation(
    source: Propagated,
    groups: Sequence[Sequence[int]],
    labels: Sequence[int],
    chosen: TaggedDataset,
    prototypes: ClassPrototypes | None = None,
) -> list[dict[str, Any]]:
    """Return what every edge of a step of propagation carried to every position.

    Args:
        source (Propagated): The step.
        groups (sequence of sequence of int): Photos of :obj:`source`: one, then its partners.
        labels (sequence of int): Class of each group.
        chosen (TaggedDataset): The photos of :obj:`source`.
        prototypes (ClassPrototypes, optional): Those of all classes, if there are any.

    Returns:
        One entry for each group. Heat is in bytes, 255 being the most that one edge carried to its
        target: :obj:`own` has :math:`S^2` rows of :math:`S^2`, :obj:`partners` as many of
        :math:`P` maps.
    """
    entries = []
    for members, label in zip(groups, labels, strict=True):
        x, evidence = evidence_nodes(source, members, label)
        own = edge_weights(source.layer, x[0], x[0]) * evidence[0]
        others = own.new_zeros(len(own), 0)
        if len(members) > 1:
            others = edge_weights(source.layer, x[0], x[1:].flatten(0, 1)) * evidence[1:].flatten()
        scores = None if prototypes is None else prototypes.score(x[0])
        names = [chosen.image_ids[i] for i in members]
        entries.append(_entry("propagation", names, label, own, others, own.sum(1), scores))
    return entries


@torch.no_grad()
def explain_attention(
    model: PGNN, chosen: TaggedDataset, sample: Sample, maps: MapConfig
) -> list[dict[str, Any]]:
    """Return the attention edges to every patch, see :func:`explain_propagation`.

    Args:
        model (PGNN): A network with a graph of grid cells.
        chosen (TaggedDataset): The photos of the sample.
        sample (Sample): The groups.
        maps (MapConfig): How its maps are inferred.
    """
    grid = model.builder.grid
    assert grid is not None
    training, stride = model.training, model.backbone.output_stride
    model.eval().backbone.set_output_stride(maps.output_stride)
    entries = []
    try:
        for members, label in zip(sample.groups, sample.labels, strict=True):
            photos = chosen.subset(members)
            (images,) = photo_batches(photos, View(maps.size or 256), len(photos), workers=0)
            features = model.backbone(images.to(model.backbone.device))
            rows = [patch_edges(model, features, node)[1] for node in range(grid * grid)]
            weight = torch.stack(rows).float()
            own, others = weight.split([grid * grid, weight.size(1) - grid * grid], dim=1)
            scores = F.adaptive_avg_pool2d(model.forward_features(features).scores[:1], grid)
            evidence = scores[0, label].flatten().relu()
            entries.append(
                _entry("attention", photos.image_ids, label, own, others, evidence, None)
            )
    finally:
        model.backbone.set_output_stride(stride)
        model.train(training)
    return entries


def write_explained(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write entries as compact JSON."""
    with atomic_write(path) as handle:
        handle.write(json.dumps(entries, separators=(",", ":")).encode())


def _entry(
    kind: str,
    names: Sequence[str],
    label: int,
    own: Tensor,
    others: Tensor,
    evidence: Tensor,
    prototypes: Tensor | None,
) -> dict[str, Any]:
    """One photo's edges [T, S] and [T, P S], on a coarser grid if need be."""
    nodes = len(own)
    side, partners = round(nodes**0.5), others.size(1) // nodes
    small, smaller = min(side, SIDE), min(side, PARTNER_SIDE)
    heat = _pooled(own.view(nodes, 1, side, side), side, small, small)
    far = _pooled(others.view(nodes, partners, side, side), side, small, smaller)
    level = F.adaptive_avg_pool2d(evidence.view(1, side, side), small).flatten()
    entry: dict[str, Any] = {
        "kind": kind,
        "images": list(names),
        "label": label + 1,
        "side": small,
        "partnerSide": smaller,
        "own": _bytes(heat / _peak(heat)),
        "partners": _bytes(far / _peak(far)),
        "evidence": _bytes(level / level.max().clamp(min=1e-12)),
    }
    if prototypes is not None:  # in hundredths: a prototype is the difference of two unit vectors
        maps = prototypes.t().view(-1, side, side)
        values = F.adaptive_avg_pool2d(maps, small).flatten(1).t()
        entry["prototypes"] = _bytes(values * 100 / 255)
    return entry


def _pooled(heat: Tensor, side: int, targets: int, sources: int) -> Tensor:
    """Average heat [T, P, s, s] over targets and sources: [targets^2, P * sources^2]."""
    coarse = F.adaptive_avg_pool2d(heat, sources).flatten(1)
    return F.adaptive_avg_pool2d(coarse.t().view(-1, side, side), targets).flatten(1).t()


def _peak(heat: Tensor) -> Tensor:
    if heat.size(1) == 0:
        return heat.new_ones(len(heat), 1)
    return heat.amax(dim=1, keepdim=True).clamp(min=1e-12)


def _bytes(values: Tensor) -> str:
    raw = (values.clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous().numpy().tobytes()
    return b64encode(raw).decode()
