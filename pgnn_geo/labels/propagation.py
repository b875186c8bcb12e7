r"""Propagation over a whole data set: class evidence of all photos completes each photo's maps."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import scatter

from pgnn_geo.datasets import partner_groups
from pgnn_geo.labels.feature_bank import FeatureBank
from pgnn_geo.labels.whitening import WhitenedFeatures
from pgnn_geo.nn import ClassPrototypes, CongenericPropagation
from pgnn_geo.nn.decoder import ActivationName

PropagationName = Literal["none", "within", "group", "prototypes", "both"]


@dataclass
class TaggedMaps:
    """Attention maps of the tagged classes of :math:`M` photos, one row each.

    Args:
        maps (torch.Tensor): Maps :obj:`[R, h, w]` in :math:`[0, 1]`.
        owners (torch.Tensor): Photo of each row :obj:`[R]`, sorted.
        classes (torch.Tensor): Class of each row :obj:`[R]`, 0 to K - 1.
        tags (torch.Tensor): Multi-hot tags :obj:`[M, K]`, bool; row :obj:`r` is its
            :obj:`r`-th nonzero entry.
    """

    maps: Tensor
    owners: Tensor
    classes: Tensor
    tags: Tensor

    def dense(self, photos: Tensor) -> Tensor:
        """Return :obj:`[b, K, h, w]` for photos :obj:`[b]`, zero for classes they do not have."""
        rows = self.row(photos)
        return torch.where(
            (rows >= 0)[..., None, None], self.maps[rows.clamp(min=0)], self.maps.new_zeros(())
        )

    def row(self, photos: Tensor) -> Tensor:
        """Return the row of every photo and class :obj:`[b, K]`, -1 where there is none."""
        index = self.tags.flatten().cumsum(0).view_as(self.tags) - 1
        return torch.where(self.tags, index, -1)[photos]

    def activated(self, scores: Tensor, activation: ActivationName) -> "TaggedMaps":
        """Return the maps of scores :obj:`[R, h, w]`; only a photo's own classes compete."""
        if activation == "relu":
            return self.with_maps(scores.relu())
        scores = scores if scores.dtype == torch.float64 else scores.float()
        # The background's score is zero; the largest is taken off: no exponential overflows.
        peak = scatter(scores, self.owners, 0, len(self.tags), reduce="max").clamp(min=0)
        weight = (scores - peak[self.owners]).exp()
        total = (-peak).exp().index_add_(0, self.owners, weight)
        return self.with_maps(weight / total[self.owners])

    def with_maps(self, maps: Tensor) -> "TaggedMaps":
        """Return the same rows with other maps, each divided by its maximum."""
        peak = maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
        return TaggedMaps(maps / peak, self.owners, self.classes, self.tags)


def propagate(
    kind: PropagationName,
    features: FeatureBank | WhitenedFeatures,
    start: TaggedMaps,
    partners: int = 10,
    power: float = 1.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> TaggedMaps:
    r"""Complete attention maps by class evidence that travels along similar features.

    Args:
        kind (str): :obj:`"none"`; :obj:`"within"`: among the positions of one photo;
            :obj:`"group"`: among those of the photo and of :obj:`partners` others of the class;
            :obj:`"prototypes"`: from all photos of the data set at once, the linear form;
            :obj:`"both"`: prototypes, then the group form on their maps.
        features (FeatureBank or WhitenedFeatures): Features :obj:`[M, C, h, w]` of all photos.
        start (TaggedMaps): The maps to complete.
        partners (int): Other photos in the group form; with 0 it is :obj:`"within"`.
            (default: :obj:`10`)
        power (float): Exponent of the similarity :obj:`"within"` and in the group form.
            (default: :obj:`1.0`)
        seed (int): Seed of the choice of partners. (default: :obj:`0`)
        device (torch.device or str): Where to compute. (default: :obj:`"cpu"`)
    """
    if kind == "none":
        return start
    prototypes = _mean_feature(features, start, device)
    if kind in ("prototypes", "both"):
        start = _from_prototypes(prototypes, features, start, device)
    if kind in ("within", "group", "both"):
        count = 0 if kind == "within" else partners
        start = _from_partners(prototypes.mean, features, start, count, power, seed, device)
    return start


def _batches(features: FeatureBank | WhitenedFeatures, size: int = 16) -> list[Tensor]:
    return list(torch.arange(len(features)).split(size))


def _mean_feature(
    features: FeatureBank | WhitenedFeatures, start: TaggedMaps, device: torch.device | str
) -> ClassPrototypes:
    prototypes = ClassPrototypes(start.tags.size(1), features.shape[1]).to(device)
    for photos in _batches(features):
        prototypes.update_mean(features[photos].to(device))
    return prototypes


def _from_prototypes(
    prototypes: ClassPrototypes,
    features: FeatureBank | WhitenedFeatures,
    start: TaggedMaps,
    device: torch.device | str,
) -> TaggedMaps:
    """Compare every position with its classes' prototypes, made from all photos."""
    for photos in _batches(features):
        prototypes.update(
            features[photos].to(device),
            start.dense(photos).to(device),
            start.tags[photos].float().to(device),
        )
    maps = torch.empty_like(start.maps)
    for photos in _batches(features):
        rows = start.row(photos)
        scores = prototypes.score(features[photos].to(device)).to(maps)
        maps[rows[rows >= 0]] = scores[rows >= 0]
    return start.with_maps(maps)


def _from_partners(
    mean: Tensor,
    features: FeatureBank | WhitenedFeatures,
    start: TaggedMaps,
    partners: int,
    power: float,
    seed: int,
    device: torch.device | str,
) -> TaggedMaps:
    """Let every position collect scores from similar ones in its photo and its partners.

    Partners' features and maps are averaged over 2 x 2 positions: a quarter of the work.
    """
    layer = CongenericPropagation("cosine", mean=mean, power=power).to(device)
    groups = partner_groups(start.tags, partners=1, group_size=partners + 1, seed=seed).indices
    rows = start.row(groups.flatten()).view(*groups.shape, -1)
    rows = rows.gather(2, start.classes.view(-1, 1, 1).expand(-1, partners + 1, 1))[..., 0]
    maps = torch.empty_like(start.maps)
    for r in range(len(maps)):
        x = features[groups[r]].to(device)
        scores = start.maps[rows[r]].to(device)[:, None]
        targets = _nodes(x[:1])
        sources, evidence = [targets], [_nodes(scores[:1])]
        if partners:
            sources.append(_nodes(F.avg_pool2d(x[1:], 2, ceil_mode=True)))
            evidence.append(_nodes(F.avg_pool2d(scores[1:], 2, ceil_mode=True)))
        source, target = torch.cat(sources), targets
        zero = torch.zeros(len(source), dtype=torch.long, device=source.device)
        result = layer(torch.cat(evidence), (source, target), batch=(zero, zero[: len(target)]))
        maps[r] = result.view(maps.shape[1:]).to(maps)
    return start.with_maps(maps)


def _nodes(x: Tensor) -> Tensor:
    """Turn positions into nodes: :obj:`[n, C, h, w]` to :obj:`[n h w, C]`."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)
