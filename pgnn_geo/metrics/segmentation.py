"""Segmentation scores out of one confusion matrix over the whole data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import IGNORE


@dataclass(frozen=True)
class SegmentationScores:
    r"""IoU, precision and recall of every class and their means.

    .. math::
        \mathrm{IoU}_c = \frac{TP_c}{TP_c + FP_c + FN_c}, \quad
        P_c = \frac{TP_c}{TP_c + FP_c}, \quad
        R_c = \frac{TP_c}{TP_c + FN_c}

    A class found neither in the truth nor in the predictions is :obj:`nan` and left out of the
    means. A class found in only one of them counts 0, also where its precision or recall is 0/0:
    never predicting a class must not raise a mean.

    Args:
        classes (tuple of str): Names; the first is the background.
        iou (tuple of float): IoU per class.
        precision (tuple of float): Precision per class.
        recall (tuple of float): Recall per class.
        images (int): Images scored.
        coverage (float): Share of the pixels with a truth that also have a prediction; the others
            were predicted 255 and do not enter the scores.
    """

    classes: tuple[str, ...]
    iou: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    images: int
    coverage: float

    @property
    def miou(self) -> float:
        """Mean IoU with background: the VOC measure."""
        return _mean(self.iou)

    def means(self, background: bool = True) -> dict[str, float]:
        """Means over the classes, as :obj:`{"miou": .., "precision": .., "recall": ..}`.

        Args:
            background (bool): Whether the background is one of the classes. (default: :obj:`True`)
        """
        start = 0 if background else 1
        return {
            "miou": _mean(self.iou[start:]),
            "precision": _mean(self.precision[start:]),
            "recall": _mean(self.recall[start:]),
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, :obj:`nan` as :obj:`None`.

        The headline :obj:`miou` has the background in it, as VOC's measure does; the headline
        :obj:`precision` and :obj:`recall` are means over the foreground, as weakly supervised
        papers report them. :obj:`with_background` and :obj:`foreground` hold all three of each.
        """
        foreground = _plain(self.means(background=False))
        rows = zip(self.classes, self.iou, self.precision, self.recall, strict=True)
        return {
            **foreground,
            **_plain({"miou": self.miou}),
            "with_background": _plain(self.means()),
            "foreground": foreground,
            "per_class": {
                name: _plain({"iou": iou, "precision": precision, "recall": recall})
                for name, iou, precision, recall in rows
            },
            "images": self.images,
            **_plain({"coverage": self.coverage}),
        }


class ConfusionMatrix:
    """Streaming confusion matrix of label images; pixels whose truth is 255 are ignored.

    A pixel predicted 255 (a pseudo-label that abstains) is left out as well and lowers
    :attr:`SegmentationScores.coverage`.

    Args:
        num_classes (int): Foreground classes :math:`K`; labels are 0 (background) to :math:`K`.
        classes (sequence of str, optional): Foreground names. (default: :obj:`"1"`, :obj:`"2"`, ..)

    Shapes:
        - **update:** predicted and true labels, both :math:`(*)`
        - **counts:** :math:`(K+1, K+2)`, rows truth, columns prediction; the last column is 255
    """

    def __init__(self, num_classes: int, classes: Sequence[str] | None = None) -> None:
        self.num_classes = num_classes
        self.classes = _names(num_classes, classes)
        self.counts = torch.zeros(num_classes + 1, num_classes + 2, dtype=torch.long)
        self.images = 0

    def update(
        self, predicted: Tensor | ArrayLike, truth: Tensor | ArrayLike, image_id: str | None = None
    ) -> None:
        """Add one image, or a batch of them of shape :math:`(B, H, W)`.

        Args:
            predicted (Tensor or array): Integer labels.
            truth (Tensor or array): Integer labels of the same shape.
            image_id (str, optional): Named in errors. (default: :obj:`None`)

        Raises:
            InputError: If the shapes differ or a label is neither 255 nor in :math:`0..K`.
        """
        where = f" of image '{image_id}'" if image_id else ""
        guess, true = (
            label_array(predicted, f"prediction{where}"),
            label_array(truth, f"truth{where}"),
        )
        if guess.shape != true.shape:
            raise InputError(
                f"prediction{where} is {tuple(guess.shape)} but its truth {tuple(true.shape)}; "
                "score label images at the size of their masks"
            )
        # Every pair of bytes is counted at once, then 255 and bad labels are told apart in the
        # 256 x 256 table: no masked copy of the image is made.
        pairs = true.astype(np.uint16)
        pairs <<= 8
        pairs |= guess
        table = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
        labels = self.num_classes + 1
        seen_labels = {"prediction": table.sum(0).tolist(), "truth": table.sum(1).tolist()}
        for name, seen in seen_labels.items():
            bad = [label for label in range(labels, IGNORE) if seen[label]]
            if bad:
                raise InputError(
                    f"{name}{where} holds label {bad[0]}; labels are "
                    f"0..{self.num_classes} and {IGNORE} (ignore)"
                )
        columns = [*range(labels), IGNORE]
        self.counts += torch.from_numpy(table[:labels, columns])
        self.images += guess.shape[0] if guess.ndim == 3 else 1

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of :obj:`other`."""
        self.counts += other.counts
        self.images += other.images

    def all_reduce(self) -> None:
        """Sum the counts over all ranks; a no-op outside of :obj:`torch.distributed`."""
        self.counts, self.images = _all_reduce(self.counts, self.images)

    def compute(self) -> SegmentationScores:
        """Scores of everything added so far."""
        return _scores(self.counts, self.images, self.classes)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.num_classes}, images={self.images})"


class BackgroundSweep:
    r"""Scores of attention maps at many background thresholds, in one pass over the data set.

    A pixel takes the class of its largest score where that is above the threshold, and background
    elsewhere; a rule such as :math:`(1 - \max A)^p` is one of these thresholds as well. Picking
    the best threshold uses ground truth: label such a number *oracle*.

    Args:
        num_classes (int): Foreground classes :math:`K`.
        thresholds (sequence of float): Background scores, ascending.
        classes (sequence of str, optional): Foreground names. (default: :obj:`"1"`, :obj:`"2"`, ..)

    Shapes:
        - **update:** attention maps :math:`(K, H, W)`, truth :math:`(H, W)`
    """

    def __init__(
        self, num_classes: int, thresholds: Sequence[float], classes: Sequence[str] | None = None
    ) -> None:
        if len(thresholds) == 0 or list(thresholds) != sorted(thresholds):
            raise InputError(f"thresholds must be ascending and not empty, got {thresholds}")
        self.num_classes = num_classes
        self.thresholds = torch.tensor(thresholds, dtype=torch.float)
        self.classes = _names(num_classes, classes)
        self.counts = torch.zeros(
            num_classes + 1, num_classes, len(thresholds) + 1, dtype=torch.long
        )
        self.images = 0

    def update(self, attention: Tensor, truth: Tensor | ArrayLike) -> None:
        """Add one image.

        Args:
            attention (Tensor): Maps at the size of the mask.
            truth (Tensor or array): Integer labels, 255 ignored.

        Raises:
            InputError: If the shapes do not fit, or a label is neither 255 nor in :math:`0..K`.
        """
        true = torch.from_numpy(label_array(truth, "truth"))
        if attention.shape != (self.num_classes, *true.shape):
            raise InputError(
                f"attention is {tuple(attention.shape)}, want {(self.num_classes, *true.shape)}: "
                "one map per class at the size of the mask"
            )
        true = true.long()
        keep = true != IGNORE
        if (true[keep] > self.num_classes).any():
            raise InputError(
                f"truth holds label {int(true[keep].max())}; labels are "
                f"0..{self.num_classes} and {IGNORE} (ignore)"
            )
        score, label = attention.detach().float().cpu().max(dim=0)
        passed = torch.bucketize(score, self.thresholds)  # thresholds strictly below the score
        flat = (true * self.num_classes + label) * (len(self.thresholds) + 1) + passed
        table = torch.bincount(flat[keep], minlength=self.counts.numel())
        self.counts += table.view_as(self.counts)
        self.images += 1

    def all_reduce(self) -> None:
        """Sum the counts over all ranks; a no-op outside of :obj:`torch.distributed`."""
        self.counts, self.images = _all_reduce(self.counts, self.images)

    def compute(self) -> list[SegmentationScores]:
        """Scores at each threshold, in their order."""
        # above[..., i] counts the pixels whose score passes threshold i.
        above = self.counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        total = self.counts.sum(dim=(1, 2))
        scores = []
        for foreground in above.unbind(-1):
            background = total - foreground.sum(dim=1)
            ignored = torch.zeros_like(background)
            matrix = torch.cat([background[:, None], foreground, ignored[:, None]], dim=1)
            scores.append(_scores(matrix, self.images, self.classes))
        return scores

    def best(self) -> tuple[float, SegmentationScores]:
        """The threshold of the highest mIoU and its scores: an *oracle* choice."""
        scores = self.compute()
        index = int(np.nanargmax([score.miou for score in scores]))
        return float(self.thresholds[index]), scores[index]


def _scores(counts: Tensor, images: int, classes: tuple[str, ...]) -> SegmentationScores:
    matrix = counts[:, :-1].double()
    hit, true, guess = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    union = true + guess - hit

    def ratio(bottom: Tensor) -> tuple[float, ...]:
        value = hit / bottom.clamp(min=1)
        return tuple(value.where(union > 0, torch.nan).tolist())

    pixels = counts.sum().item()
    coverage = matrix.sum().item() / pixels if pixels else float("nan")
    iou = tuple(class_iou(counts[:, :-1]).tolist())
    return SegmentationScores(classes, iou, ratio(guess), ratio(true), images, coverage)


def class_iou(counts: Tensor) -> Tensor:
    """Return the IoU of each class in a square of counts, rows truth; :obj:`nan` if nowhere."""
    matrix = counts.double()
    hit = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - hit
    return (hit / union.clamp(min=1)).where(union > 0, torch.nan)


def label_array(value: Tensor | ArrayLike, name: str) -> NDArray[np.uint8]:
    """Return integer labels as bytes; :obj:`name` is what an error calls them."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} must hold integer labels, got {array.dtype}")
    if array.size and (array.min() < 0 or array.max() > IGNORE):
        raise InputError(f"{name} holds labels outside 0..255: {array.min()}..{array.max()}")
    return array.astype(np.uint8)


def _names(num_classes: int, classes: Sequence[str] | None) -> tuple[str, ...]:
    if not 1 <= num_classes < IGNORE:
        raise InputError(f"num_classes must be in 1..{IGNORE - 1}, got {num_classes}")
    if classes is None:
        classes = [str(index) for index in range(1, num_classes + 1)]
    if len(classes) != num_classes or "background" in classes:
        raise InputError(
            f"classes must be {num_classes} foreground names without 'background', "
            f"got {list(classes)}"
        )
    return ("background", *classes)


def _all_reduce(counts: Tensor, images: int) -> tuple[Tensor, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return counts, images
    device = torch.device("cpu")
    if dist.get_backend() == "nccl":  # reduces CUDA tensors only
        device = torch.device("cuda", torch.cuda.current_device())
    packed = torch.cat([counts.flatten(), counts.new_tensor([images])]).to(device)
    dist.all_reduce(packed)
    packed = packed.cpu()
    return packed[:-1].view_as(counts).clone(), int(packed[-1])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not isnan(value)]
    return sum(known) / len(known) if known else float("nan")


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {key: None if isnan(value) else value for key, value in values.items()}
