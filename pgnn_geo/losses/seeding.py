r"""Seeding loss: a network's own maps are trained toward completed ones."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import IGNORE
from pgnn_geo.losses.reduction import divisor


class SeedingLoss(nn.Module):
    r"""Cross-entropy of class scores against reference maps where these are certain.

    The reference maps :math:`A`, for example the maps of the same network after propagation, give
    each position a label,

    .. math::
        y_u = \begin{cases}
        \arg\max_k A_{k,u} & \text{if } \max_k A_{k,u} > \tau_f \\
        0 & \text{if } \max_k A_{k,u} < \tau_b \\
        \text{ignored} & \text{otherwise}
        \end{cases}

    and the scores :math:`S` beside a background of score zero are trained on it by the
    cross-entropy of :math:`\mathrm{softmax}(0, S_{1,u}, \dots, S_{K,u})`, averaged over the
    positions that are not ignored. Tags filter the reference: it is zero for classes that an image
    does not have. The seeding term is that of `"Seed, Expand and Constrain"
    <https://arxiv.org/abs/1603.06098>`_. Computed in float32 (or float64), whatever the autocast.

    Args:
        foreground (float): The reference :math:`\tau_f` above which a class is seen.
            (default: :obj:`0.5`)
        background (float): The reference :math:`\tau_b` below which there is background.
            (default: :obj:`0.3`)
        average (callable, optional): What becomes of the number of positions that the sum is
            divided by: in a training by several processes, whose gradients are averaged, its mean
            over them, so that all positions weigh the same. (default: :obj:`None`)

    Shapes:
        - **scores:** :math:`(B, K, h, w)`
        - **reference:** :math:`(B, K, H, W)` in [0, 1], resized to the scores
        - **tags:** :math:`(B, K)`
        - **output:** a scalar; zero, with a zero gradient, if every position is ignored
    """

    def __init__(
        self,
        foreground: float = 0.5,
        background: float = 0.3,
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < background <= foreground < 1:
            raise InputError(
                f"foreground={foreground}, background={background}: want "
                "0 < background <= foreground < 1"
            )
        self.foreground = foreground
        self.background = background
        self.average = average

    def labels(self, reference: Tensor, tags: Tensor) -> Tensor:
        """Label of each position :math:`(B, h, w)`: 0 background, 1..K, 255 ignored."""
        peak, label = (reference * tags[:, :, None, None].to(reference)).max(dim=1)
        label = label + 1
        label = label.masked_fill(peak <= self.foreground, IGNORE)
        return label.masked_fill(peak < self.background, 0)

    def forward(self, scores: Tensor, reference: Tensor, tags: Tensor) -> Tensor:
        """Compute the loss.

        Raises:
            InputError: If shapes disagree.
        """
        if (
            scores.dim() != 4
            or reference.dim() != 4
            or not scores.shape[:2] == reference.shape[:2] == tags.shape
        ):
            raise InputError(
                f"scores {tuple(scores.shape)}, reference {tuple(reference.shape)} and tags "
                f"{tuple(tags.shape)}: want [B, K, h, w], [B, K, H, W] and [B, K]"
            )
        if reference.shape[2:] != scores.shape[2:]:
            reference = F.interpolate(
                reference, scores.shape[2:], mode="bilinear", align_corners=False
            )
        label = self.labels(reference, tags)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        logits = torch.cat([scores.new_zeros(scores[:, :1].shape), scores], dim=1)
        total = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="sum")
        return total / divisor((label != IGNORE).sum(), self.average)

    def extra_repr(self) -> str:
        """The thresholds."""
        return f"foreground={self.foreground}, background={self.background}"
