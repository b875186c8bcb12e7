"""What kind of errors label images make, and what each kind costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import IGNORE
from pgnn_geo.metrics.segmentation import ConfusionMatrix, class_iou, label_array

#: The kinds of errors, in the order in which a pixel is looked at.
KINDS = ("boundary", "missed", "spill", "confusion")


@dataclass(frozen=True)
class ErrorShares:
    r"""What the IoU of every class would gain if all errors of one kind were mended.

    .. math::
        G_{c}^{\text{kind}} = \mathrm{IoU}_c(\text{those pixels right}) - \mathrm{IoU}_c

    The gains of all kinds do not add up to :math:`1 - \mathrm{IoU}_c`: mending one makes the others
    weigh more. A class that occurs nowhere is :obj:`nan` and left out of the means.

    Args:
        classes (tuple of str): Names; the first is the background.
        gains (dict): For each kind, the gain of every class.
    """

    classes: tuple[str, ...]
    gains: dict[str, tuple[float, ...]]

    def mean(self, kind: str) -> float:
        """Mean gain over all classes: what mIoU would gain."""
        known = [gain for gain in self.gains[kind] if not isnan(gain)]
        return sum(known) / len(known) if known else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: gains by class and their means, :obj:`nan` as :obj:`None`."""

        def row(values: Sequence[float]) -> dict[str, float | None]:
            pairs = zip(self.gains, values, strict=True)
            return {kind: None if isnan(value) else value for kind, value in pairs}

        each = zip(*self.gains.values(), strict=True)
        return {
            "mean": row([self.mean(kind) for kind in self.gains]),
            "per_class": {name: row(gains) for name, gains in zip(self.classes, each, strict=True)},
        }


class ErrorBreakdown:
    r"""Streaming count of the errors of label images by their kind.

    A wrong pixel is of the first kind that it fits:

    - *boundary*: another true label is within :math:`r = \max(1, \mathrm{round}(w \max(H, W)))`
      pixels of it, in a square window;
    - *missed*: an object that is taken for background;
    - *spill*: background that is taken for an object;
    - *confusion*: an object that is taken for another, in labels of tagged photos one of its tags.

    Pixels whose truth is 255 are ignored and are no other label of their neighbours; those
    predicted 255 are left out as well, as in :class:`ConfusionMatrix`.

    Args:
        num_classes (int): Foreground classes :math:`K`; labels are 0 (background) to :math:`K`.
        classes (sequence of str, optional): Foreground names. (default: :obj:`"1"`, :obj:`"2"`, ..)
        width (float): :math:`w`, the half width of the boundary as a share of the image's longer
            side. (default: :obj:`0.03125`, two cells of a map of 64 x 64)

    Shapes:
        - **update:** predicted and true label images, both :math:`(H, W)`

    Raises:
        InputError: If :obj:`width` is not above 0 and below 1.
    """

    def __init__(
        self, num_classes: int, classes: Sequence[str] | None = None, width: float = 1 / 32
    ) -> None:
        if not 0 < width < 1:
            raise InputError(f"width={width}: want more than 0 and less than 1")
        self.width = width
        self.boundary = ConfusionMatrix(num_classes, classes)
        self.inside = ConfusionMatrix(num_classes, classes)

    def update(
        self, predicted: Tensor | ArrayLike, truth: Tensor | ArrayLike, image_id: str | None = None
    ) -> None:
        """Add one image.

        Args:
            predicted (Tensor or array): Integer labels.
            truth (Tensor or array): Integer labels of the same shape.
            image_id (str, optional): Named in errors. (default: :obj:`None`)

        Raises:
            InputError: If the shapes differ, there is more than one image, or a label is neither
                255 nor in :math:`0..K`.
        """
        where = f" of image '{image_id}'" if image_id else ""
        true = torch.from_numpy(label_array(truth, f"truth{where}"))
        if true.dim() != 2:
            raise InputError(f"truth{where} is {tuple(true.shape)}, want one label image (H, W)")
        band = near_other_labels(true, max(1, round(self.width * max(true.shape))))
        # Each ignores what the other counts; they are added when both have accepted the labels.
        new = ErrorBreakdown(self.inside.num_classes, self.inside.classes[1:], self.width)
        new.boundary.update(predicted, true.masked_fill(~band, IGNORE), image_id)
        new.inside.update(predicted, true.masked_fill(band, IGNORE), image_id)
        self.merge(new)

    def merge(self, other: "ErrorBreakdown") -> None:
        """Add the counts of :obj:`other`."""
        self.boundary.merge(other.boundary)
        self.inside.merge(other.inside)

    def compute(self) -> ErrorShares:
        """What each kind costs in everything added so far."""
        band, inside = (m.counts[:, :-1] for m in (self.boundary, self.inside))
        wrong = inside - inside.diag().diag()
        objects, none = wrong.clone(), torch.zeros_like(wrong)
        objects[0], objects[:, 0] = 0, 0
        missed, spill = none.clone(), none.clone()
        missed[:, 0], spill[0] = wrong[:, 0], wrong[0]
        kinds = (band - band.diag().diag(), missed, spill, objects)
        before = class_iou(band + inside)
        gains = {
            # What is mended moves to the diagonal of its true class.
            kind: class_iou(band + inside - errors + errors.sum(dim=1).diag()) - before
            for kind, errors in zip(KINDS, kinds, strict=True)
        }
        names = self.inside.classes
        return ErrorShares(names, {kind: tuple(gain.tolist()) for kind, gain in gains.items()})

    def __repr__(self) -> str:
        name, images = self.__class__.__name__, self.inside.images
        return f"{name}({self.inside.num_classes}, width={self.width:g}, images={images})"


def near_other_labels(truth: Tensor, radius: int) -> Tensor:
    """Return where a label image has another label within a square of :obj:`2 radius + 1` pixels.

    Args:
        truth (torch.Tensor): Labels :obj:`[H, W]`, of which 255 is none.
        radius (int): The pixels on each side.
    """
    known = truth != IGNORE
    labels, largest = truth.float(), float(IGNORE)
    high = _window_max(labels.masked_fill(~known, -1.0), radius)
    low = largest - _window_max((largest - labels).masked_fill(~known, -1.0), radius)
    return known & (high != low)


def _window_max(values: Tensor, radius: int) -> Tensor:
    """The largest value in the square around each pixel: one direction, then the other."""
    size = 2 * radius + 1
    rows = F.max_pool2d(values[None, None], (size, 1), 1, (radius, 0))
    return F.max_pool2d(rows, (1, size), 1, (0, radius))[0, 0]
