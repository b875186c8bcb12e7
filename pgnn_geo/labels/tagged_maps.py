"""Attention maps of the tagged classes of all photos, one row for each photo and tag."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import scatter

from pgnn_geo.nn.decoder import ActivationName


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

    def put(self, rows: Tensor, photos: Tensor, maps: Tensor) -> None:
        """Write maps :obj:`[b, K, h, w]` of photos :obj:`[b]` into :obj:`rows` :obj:`[R, h, w]`."""
        own, values = self.row(photos).to(rows.device), maps.to(rows)
        rows[own[own >= 0]] = values[own >= 0]

    @classmethod
    def empty(cls, tags: Tensor, side: int) -> "TaggedMaps":
        """Return maps of zeros, of so many positions per side, for multi-hot tags."""
        owners, classes = tags.bool().nonzero(as_tuple=True)
        return cls(torch.zeros(len(owners), side, side), owners, classes, tags.bool())

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

    def averaged(self, window: int) -> "TaggedMaps":
        """Return the maps averaged over a window of so many positions, odd, within the photo."""
        mean = F.avg_pool2d(self.maps[:, None], window, 1, window // 2, count_include_pad=False)
        return self.with_maps(mean[:, 0])

    def with_maps(self, maps: Tensor) -> "TaggedMaps":
        """Return the same rows with other maps, each divided by its maximum."""
        peak = maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
        return TaggedMaps(maps / peak, self.owners, self.classes, self.tags)
