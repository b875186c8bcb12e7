r"""Class probabilities of several views of one photo, averaged at any size."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.errors import InputError

#: Values of one strip of the result: 32 MiB in float32.
_STRIP = 1 << 23


class ViewAverage:
    r"""The mean of the class probabilities of the views of one photo (scales, mirror images).

    .. math::
        P = \frac{1}{V} \sum_{v=1}^{V} \operatorname{softmax}
        \bigl( \operatorname{bilinear}(z_v) \bigr)

    The logits :math:`z_v` are kept at the resolution of the network. The result is computed in
    strips of rows, so that :meth:`labels` of a photo of any size takes one byte per pixel and a
    few strips.

    Args:
        maps (sequence of torch.Tensor): One tensor :obj:`[L, h, w]` for each view, logits of
            :obj:`L` labels; sizes may differ.
        labels (torch.Tensor, optional): Label of each map :obj:`[L]`, ascending; 0..L-1 if not
            given. Labels that are not among them have probability zero.
        num_labels (int, optional): Of :meth:`probabilities`, :math:`K + 1`; :obj:`L` if not given.
        logits (bool): Whether the maps are logits; otherwise they are probabilities already.
            (default: :obj:`True`)

    Raises:
        InputError: If there are no maps, or their labels differ in number.
    """

    def __init__(
        self,
        maps: Sequence[Tensor],
        labels: Tensor | None = None,
        num_labels: int | None = None,
        logits: bool = True,
    ) -> None:
        if not maps or any(m.dim() != 3 or len(m) != len(maps[0]) for m in maps):
            shapes = [[*m.shape] for m in maps]
            raise InputError(f"want one or more maps [L, h, w] of the same labels, got {shapes}")
        self.maps = [m.to(torch.promote_types(m.dtype, torch.float)).contiguous() for m in maps]
        device = maps[0].device
        self.label_ids = torch.arange(len(maps[0])) if labels is None else labels
        self.label_ids = self.label_ids.to(device)
        if len(self.label_ids) != len(maps[0]):
            raise InputError(
                f"want {len(maps[0])} labels, one for each map, got {len(self.label_ids)}"
            )
        self.num_labels = len(maps[0]) if num_labels is None else num_labels
        self.logits = logits

    def probabilities(self, size: Sequence[int]) -> Tensor:
        """Return :obj:`[K + 1, H, W]` at :obj:`size`, height and width."""
        result = self.maps[0].new_zeros(self.num_labels, *size)
        for rows, strip in self.strips(size):
            result[self.label_ids, rows] = strip
        return result

    def labels(self, size: Sequence[int]) -> Tensor:
        """Return the label image :obj:`[H, W]`, uint8, at :obj:`size`, height and width."""
        ids = self.label_ids.to(torch.uint8)
        result = torch.empty(*size, dtype=torch.uint8, device=ids.device)
        for rows, strip in self.strips(size):
            result[rows] = ids[strip.max(dim=0).indices]  # argmax takes four times as long
        return result

    def at(self, size: Sequence[int]) -> "ViewAverage":
        """Return the average as it is at :obj:`size`, to be interpolated from there.

        Much larger results then cost one interpolation instead of one and a softmax per view.
        """
        maps = self.probabilities(size)[self.label_ids]
        return ViewAverage([maps], self.label_ids, self.num_labels, logits=False)

    def strips(self, size: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their probabilities :obj:`[L, rows, W]`, from the top to the bottom."""
        height, width = size
        step = max(1, _STRIP // (len(self.label_ids) * width))
        for top in range(0, height, step):
            rows = slice(top, min(top + step, height))
            total = self._strip(self.maps[0], rows, size)
            for maps in self.maps[1:]:
                total += self._strip(maps, rows, size)
            yield rows, total.div_(len(self.maps))

    def _strip(self, maps: Tensor, rows: slice, size: Sequence[int]) -> Tensor:
        """Return some rows of bilinearly resized maps, and their softmax if they are logits."""
        height, width = size
        low, high, weight = (t.to(maps.device) for t in _neighbours(rows, height, maps.shape[1]))
        mixed = maps[:, low].lerp(maps[:, high], weight[:, None].to(maps.dtype))  # [L, rows, w]
        # Rows are at their place, so only columns are interpolated here.
        strip = F.interpolate(
            mixed[None], size=(mixed.shape[1], width), mode="bilinear", align_corners=False
        )[0]
        return strip.softmax(dim=0) if self.logits else strip


def _neighbours(rows: slice, height: int, source: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source rows of each row and the weight of the second, pixels as areas."""
    index = torch.arange(rows.start, rows.stop, dtype=torch.double)
    position = ((index + 0.5) * (source / height) - 0.5).clamp(min=0)
    low = position.long().clamp(max=source - 1)
    return low, (low + 1).clamp(max=source - 1), position - low
