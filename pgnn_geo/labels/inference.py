r"""Attention maps of a whole data set: partner groups averaged, over scales and mirroring."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset, partner_groups
from pgnn_geo.errors import InputError
from pgnn_geo.labels.feature_bank import FeatureBank
from pgnn_geo.labels.features import Progress, View, feature_batches, no_progress, stem_bank
from pgnn_geo.labels.propagation import PropagationName, TaggedMaps, propagate
from pgnn_geo.nn import PGNN


@dataclass(frozen=True)
class MapConfig:
    """How attention maps are inferred.

    Args:
        size (int): Side of the square that photos are squashed to, in pixels.
        scales (sequence of float): Multiples of :obj:`size`; the maps are summed.
        flip (bool): Average the features with those of the mirrored photo.
        source (str): For a P-GNN, the head whose maps are taken: :obj:`"graph"`, the one after the
            graph, or :obj:`"backbone"`, the one before it, which the graph has helped to train.
        partners (int): Groups that are averaged for each photo and class after the graph.
        group_size (int): Photos in a group, as in training.
        propagate (str): Completion of the maps by evidence from other photos, see
            :func:`~pgnn_geo.labels.propagation.propagate`.
        propagation_partners (int): Other photos in its group form.
        output_stride (int): Stride of the feature map.
        seed (int): Seed of the choice of partners.
    """

    size: int = 256
    scales: Sequence[float] = (1.0,)
    flip: bool = True
    source: Literal["graph", "backbone"] = "backbone"
    partners: int = 3
    group_size: int = 3
    propagate: PropagationName = "prototypes"
    propagation_partners: int = 10
    output_stride: int = 8
    seed: int = 0


@torch.inference_mode()
def attention_maps(
    model: PGNN,
    dataset: TaggedDataset,
    config: MapConfig | None = None,
    stem_folder: Path | None = None,
    scratch_folder: Path | None = None,
    progress: Progress = no_progress,
) -> list[Tensor]:
    r"""Return the attention maps of every photo's tagged classes.

    For photo :math:`i` and class :math:`c`, :math:`P` = :obj:`partners` groups are made of the
    photo and others tagged :math:`c`; which ones depends on the seed, the photo and the class
    alone, never on the batch. With :math:`s` the class scores at one scale,

    .. math::
        A_{i,c} = \mathrm{norm} \sum_{\text{scales}} \mathrm{propagate} \Bigl( \mathrm{norm} \,
        \frac{1}{P} \sum_{p=1}^{P} s_{i,c}^{(p)} \Bigr), \qquad
        \mathrm{norm}(s) = \mathrm{ReLU}(s) / \max \mathrm{ReLU}(s)

    Without a graph (:obj:`layers=0`), or with the head before it, there are no groups; a CAM is the
    former without propagation.

    Args:
        model (PGNN): The network; its output stride is set for the time of the call.
        dataset (TaggedDataset): Photos with tags.
        config (MapConfig, optional): How; default values if not given.
        stem_folder (Path, optional): Where outputs of frozen stages are kept for reuse; computed
            afresh if not given.
        scratch_folder (Path, optional): Where the features of one scale are put for the time of
            the call: :math:`2 M C h w` bytes. The system's temporary folder if not given.
        progress (callable, optional): Progress display.

    Returns:
        For each photo, maps :obj:`[k, h, w]` in :math:`[0, 1]` of its :obj:`k` tagged classes in
        the order of the classes; :math:`h = w` = size / stride.

    Raises:
        InputError: If the data set has no tags.
    """
    config = config or MapConfig()
    if dataset.tags is None:
        raise InputError("Attention maps need image tags; this split has none.")
    tags = dataset.tags.bool()
    training, stride = model.training, model.backbone.output_stride
    device = model.backbone.device
    model.eval()
    model.backbone.set_output_stride(config.output_stride)
    side = -(-config.size // config.output_stride)
    owners, classes = tags.nonzero(as_tuple=True)
    total = TaggedMaps(torch.zeros(len(owners), side, side), owners, classes, tags)
    try:
        for scale in config.scales:
            size = max(16, round(config.size * scale / 16) * 16)
            with tempfile.TemporaryDirectory(dir=scratch_folder, prefix="features-") as scratch:
                features = FeatureBank.build(
                    Path(scratch) / "features.npy",
                    _mean_over_flips(model, dataset, size, config.flip, stem_folder, progress),
                    len(dataset),
                    {"size": size},
                )
                scores = _class_scores(model, features, total, config)
                maps = propagate(
                    config.propagate,
                    features,
                    total.with_maps(scores.relu()),
                    config.propagation_partners,
                    config.seed,
                    device,
                ).maps
            total.maps += F.interpolate(
                maps[:, None], (side, side), mode="bilinear", align_corners=False
            )[:, 0]
    finally:
        model.backbone.set_output_stride(stride)
        model.train(training)
    return list(total.with_maps(total.maps).maps.split(tags.sum(dim=1).tolist()))


def _mean_over_flips(
    model: PGNN,
    dataset: TaggedDataset,
    size: int,
    flip: bool,
    stem_folder: Path | None,
    progress: Progress,
) -> Iterator[Tensor]:
    """Yield the features of photos, averaged with those of their mirror images turned back."""
    streams = []
    for view in (View(size), View(size, flip=True))[: 1 + flip]:
        stems = None
        if stem_folder is not None and model.backbone.frozen_stages:
            stems = stem_bank(model.backbone, dataset, stem_folder, view, progress)
        streams.append(feature_batches(model.backbone, dataset, view, stems))
    batches = -(-len(dataset) // 8)
    for features, *mirrored in progress(zip(*streams, strict=True), "features", batches):
        for other in mirrored:
            features = (features + other.flip(-1)) / 2
        yield features


def _class_scores(
    model: PGNN, features: FeatureBank, rows: TaggedMaps, config: MapConfig
) -> Tensor:
    """Return the score map :obj:`[R, h, w]` of every photo and tagged class."""
    device = model.backbone.device
    if model.backbone_decoder is None or config.source == "backbone":
        decoder = model.backbone_decoder or model.decoder
        batches = torch.arange(len(features)).split(16)
        scores = [decoder(features[photos].to(device))[0].float().cpu() for photos in batches]
        return torch.cat(scores)[rows.tags]
    groups = partner_groups(
        rows.tags, partners=config.partners, group_size=config.group_size, seed=config.seed
    )
    members = groups.indices.view(len(rows.owners), -1)  # the photo itself first in each group
    result = []
    for photos, classes in zip(members.split(4), rows.classes.split(4), strict=True):
        unique, inverse = photos.flatten().unique(return_inverse=True)
        x = features[unique].to(device)[inverse.to(device)]
        group = torch.arange(len(x), device=device) // config.group_size
        maps = model.forward_features(x, group=group).scores  # [4 P N, K, h, w]
        maps = maps.view(len(photos), config.partners, config.group_size, *maps.shape[1:])
        anchors = maps[:, :, 0].mean(dim=1)
        picked = classes.to(device).view(-1, 1, 1, 1).expand(-1, 1, *anchors.shape[-2:])
        result.append(anchors.gather(1, picked)[:, 0].float().cpu())
    return torch.cat(result)
