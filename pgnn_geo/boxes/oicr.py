r"""What tags and a detector's own scores teach it: WSDDN's loss, OICR's online pseudo-labels."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from pgnn_geo.boxes.image_boxes import ImageBoxes
from pgnn_geo.errors import InputError
from pgnn_geo.losses.reduction import divisor


class OICRLabels(NamedTuple):
    """What the proposals of an image are taken to show."""

    labels: Tensor  #: 0 background, 1..K, of each proposal [r]
    weights: Tensor  #: their weights in the loss [r]; 0 for what is ignored


def image_loss(
    image_scores: Tensor,
    tags: Tensor,
    eps: float = 1e-6,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""WSDDN's loss: the binary cross-entropy of tags and sums over proposals.

    .. math::
        \mathcal{L} = -\frac{1}{B} \sum_b \sum_k y_{bk} \log \hat{y}_{bk} +
        (1 - y_{bk}) \log (1 - \hat{y}_{bk}), \qquad
        \hat{y} \text{ clamped to } [\epsilon, 1 - \epsilon]

    Args:
        image_scores (torch.Tensor): Sums :obj:`[B, K]` in :math:`[0, 1]`, see
            :class:`WeakDetector`; leave out images without a proposal.
        tags (torch.Tensor): Multi-hot tags :obj:`[B, K]`.
        eps (float): :math:`\epsilon`. (default: :obj:`1e-6`)
        average (callable, optional): What becomes of the number that the sum is divided by in a
            training by several processes, see :class:`~pgnn_geo.losses.SeedingLoss`.
    """
    scores = image_scores.float().clamp(eps, 1 - eps)
    total = F.binary_cross_entropy(scores, tags.float(), reduction="sum")
    return total / divisor(total.new_full((), len(scores)), average)


def oicr_centres(proposals: Tensor, scores: Tensor, tags: Tensor) -> ImageBoxes:
    """Return the proposal of the highest score for each tagged class: its pseudo ground truth.

    No proposal is that of two classes; the class that scores highest chooses first. There are
    fewer centres than tags where there are fewer proposals.

    Args:
        proposals (torch.Tensor): Boxes :obj:`[r, 4]`.
        scores (torch.Tensor): Their class scores :obj:`[r, K]`.
        tags (torch.Tensor): Multi-hot tags :obj:`[K]`.
    """
    # On the CPU: a GPU would be waited for once for each class.
    left, tagged = scores.detach().float().cpu().clone(), tags.bool().cpu()
    left[:, ~tagged] = -1
    rows: list[int] = []
    columns: list[int] = []
    for _ in range(min(int(tagged.sum()), len(proposals))):
        row, column = divmod(int(left.argmax()), left.size(1))
        rows.append(row)
        columns.append(column)
        left[row] = left[:, column] = -1
    at = torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)
    return ImageBoxes(
        proposals[at[0]].float(), at[1].to(proposals.device) + 1, scores.detach()[at].float()
    )


def oicr_labels(
    proposals: Tensor,
    centres: ImageBoxes,
    foreground: float = 0.5,
    background: tuple[float, float] = (0.0, 0.5),
) -> OICRLabels:
    r"""Label every proposal by the centre that it overlaps most.

    With :math:`c(r)` that centre and :math:`o_r` the overlap (intersection over union),

    .. math::
        y_r = \begin{cases} \mathrm{class}(c(r)) & o_r > \mathrm{foreground} \\ 0 &
        \text{else} \end{cases}, \qquad w_r = \mathrm{score}(c(r))

    and :math:`w_r = 0` for proposals that are neither foreground nor within the range of
    overlaps that is background: :obj:`(0, 0.3)` ignores a band up to the foreground,
    :obj:`(0.1, 0.5)` all that is far from every centre.

    Args:
        proposals (torch.Tensor): Boxes :obj:`[r, 4]`.
        centres (ImageBoxes): The pseudo ground truth; without any, all weights are 0.
        foreground (float): Overlap above which a proposal has its centre's class.
            (default: :obj:`0.5`)
        background (tuple of float): Range of overlaps that is background.
            (default: :obj:`(0.0, 0.5)`)

    Raises:
        InputError: If not :math:`0 \le` low :math:`\le` high :math:`\le` foreground
            :math:`\le 1`.
    """
    low, high = background
    if not 0 <= low <= high <= foreground <= 1:
        raise InputError(
            f"foreground={foreground}, background={background}: want 0 <= low <= high <= "
            "foreground <= 1"
        )
    if len(centres) == 0:
        zeros = proposals.new_zeros(len(proposals))
        return OICRLabels(zeros.long(), zeros)
    overlap, nearest = box_iou(proposals, centres.boxes).max(dim=1)
    inside = overlap > foreground
    labels = torch.where(inside, centres.classes[nearest], 0)
    used = inside | ((overlap >= low) & (overlap <= high))
    return OICRLabels(labels, torch.where(used, centres.scores[nearest], 0.0))


def refinement_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""OICR's loss of one refinement: the weighted cross-entropy, averaged over all proposals.

    .. math::
        \mathcal{L} = -\frac{1}{R} \sum_r w_r \log p_{r, y_r}

    Zero without proposals.

    Args:
        logits (torch.Tensor): Logits :obj:`[R, K+1]`, the first the background's.
        labels (torch.Tensor): 0..K of each proposal :obj:`[R]`.
        weights (torch.Tensor): Their weights :obj:`[R]`.
        average (callable, optional): See :func:`image_loss`.
    """
    losses = weights * F.cross_entropy(logits.float(), labels, reduction="none")
    return losses.sum() / divisor(losses.new_full((), len(logits)), average)
