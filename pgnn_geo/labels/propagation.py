r"""Propagation over a whole data set: class evidence of all photos completes each photo's maps."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import scatter

from pgnn_geo.datasets import partner_groups
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.whitening import WhitenedFeatures
from pgnn_geo.nn import ClassPrototypes
from pgnn_geo.nn.decoder import ActivationName
from pgnn_geo.nn.propagation import centered_unit, cosine_sums, normalized

PropagationName = Literal["none", "within", "group", "prototypes", "both"]

#: Photos whose features are in memory at a time. With 16 the system's page faults for fresh memory
#: take several times as long as the prototypes' arithmetic.
CHUNK = 4


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
        tags = self.tags[photos]
        first = torch.searchsorted(self.owners.contiguous(), photos)
        return torch.where(tags, first[:, None] + tags.cumsum(1) - 1, -1)

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
    scratch_folder: Path | None = None,
) -> TaggedMaps:
    r"""Complete attention maps by class evidence that travels along similar features.

    The memory it takes does not grow with the number of photos or partners, but for the maps and
    the partners' numbers: features of 4 photos are read at a time, and of 4 partners at a quarter
    of the size, and similarities are made in blocks of at most 16 MiB.

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
        scratch_folder (Path, optional): Where the group form puts features of :obj:`2 x 2`
            positions each for the time of the call: :math:`M C h w / 2` bytes. The system's
            temporary folder if not given.
    """
    if kind == "none":
        return start
    prototypes = _mean_feature(features, start, device)
    if kind in ("prototypes", "both"):
        start = _from_prototypes(prototypes, features, start, device)
    if kind in ("within", "group", "both"):
        count = 0 if kind == "within" else partners
        with tempfile.TemporaryDirectory(dir=scratch_folder, prefix="partners-") as scratch:
            pooled = _pooled(prototypes.mean, features, Path(scratch), device) if count else None
            start = _from_partners(
                prototypes.mean, features, pooled, start, count, power, seed, device
            )
    return start


def _batches(features: FeatureBank | WhitenedFeatures) -> list[Tensor]:
    return list(torch.arange(len(features)).split(CHUNK))


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


def _pooled(
    mean: Tensor,
    features: FeatureBank | WhitenedFeatures,
    folder: Path,
    device: torch.device | str,
) -> FeatureBank:
    """Write the centered unit features of every 2 x 2 positions, which all groups read."""
    batches = (
        centered_unit(F.avg_pool2d(features[photos].to(device), 2, ceil_mode=True), mean, dim=1)
        for photos in _batches(features)
    )
    return FeatureBank.build(folder / "pooled.npy", batches, len(features), {})


def _from_partners(
    mean: Tensor,
    features: FeatureBank | WhitenedFeatures,
    pooled: FeatureBank | None,
    start: TaggedMaps,
    partners: int,
    power: float,
    seed: int,
    device: torch.device | str,
) -> TaggedMaps:
    """Let every position collect scores from similar ones in its photo and its partners.

    This is :class:`~pgnn_geo.nn.CongenericPropagation` with features that are centered once, not
    in every group anew. Partners' features and maps are averaged over 2 x 2 positions: a quarter of
    the work.
    """
    maps = torch.empty_like(start.maps)
    evidence = F.avg_pool2d(start.maps[:, None], 2, ceil_mode=True).flatten(1)
    groups = partner_groups(start.tags, partners=1, group_size=partners + 1, seed=seed).indices
    rows_of = torch.arange(len(maps)).split(start.tags.sum(dim=1).tolist())
    for photos in _batches(features):
        units = centered_unit(features[photos].to(device), mean, dim=1)
        for photo, unit in zip(photos.tolist(), units, strict=True):
            own, target = rows_of[photo], _nodes(unit[None])
            # The photo's own positions serve all its classes at once.
            values = _with_ones(start.maps[own].flatten(1)).to(target)
            shared = cosine_sums(target, target, values, power)  # [h w, k + 1]
            for k, row in enumerate(own):
                sums = shared[:, [k, -1]]
                if pooled is not None:
                    for some in groups[row, 1:].split(CHUNK):
                        source = _nodes(pooled[some].to(device))
                        scores = evidence[start.row(some)[:, start.classes[row]]]
                        values = _with_ones(scores.view(1, -1)).to(source)
                        sums += cosine_sums(target, source, values, power)
                maps[row] = normalized(sums[:, 0], sums[:, 1]).view(maps.shape[1:]).to(maps)
    return start.with_maps(maps)


def _nodes(x: Tensor) -> Tensor:
    """Turn positions into nodes: :obj:`[n, C, h, w]` to :obj:`[n h w, C]`."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _with_ones(scores: Tensor) -> Tensor:
    """Turn :obj:`[k, S]` into :obj:`[S, k + 1]`, the last column ones, which sum the weights."""
    return F.pad(scores, (0, 0, 0, 1), value=1.0).t()
