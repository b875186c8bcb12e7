r"""Boxes of one photo, where they come from, and where they lie in what a transform shows of it.

Boxes are :math:`(x_1, y_1, x_2, y_2)` in pixels of the original photo, :math:`x_1 < x_2`: pixel
:math:`i` spans :math:`[i, i + 1]`, so a photo of :math:`W \times H` pixels is the box
:math:`(0, 0, W, H)`. What part of the photo a transform shows is described by :obj:`crop` and
:obj:`flip`, see :mod:`pgnn_geo.datasets.transforms`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_area, box_iou, clip_boxes_to_image

from pgnn_geo.datasets.listing import first_of
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger

_SLACK = 0.5  # pixels that a box may reach beyond its photo: files round


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    r"""Boxes of one photo with their classes and scores.

    Args:
        boxes (torch.Tensor): Boxes xyxy in pixels of the original photo, unless said otherwise.
        classes (torch.Tensor): 1..K, as labels in masks are.
        scores (torch.Tensor): In :math:`[0, 1]`.

    Shapes:
        - **boxes:** :math:`(k, 4)` float32
        - **classes:** :math:`(k)` int64
        - **scores:** :math:`(k)` float32

    Raises:
        InputError: If a shape or type is another one.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        count = len(self.boxes)
        wanted = {
            "boxes": ((count, 4), torch.float32),
            "classes": ((count,), torch.int64),
            "scores": ((count,), torch.float32),
        }
        for name, (shape, dtype) in wanted.items():
            value: Tensor = getattr(self, name)
            if value.shape != shape or value.dtype != dtype:
                raise InputError(
                    f"{name}: got {value.dtype} {list(value.shape)}, want {dtype} {list(shape)}"
                )

    @classmethod
    def empty(cls) -> "ImageBoxes":
        """No box at all."""
        return cls(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))

    @classmethod
    def cat(cls, parts: Sequence["ImageBoxes"]) -> "ImageBoxes":
        """All boxes of several, in their order."""
        if not parts:
            return cls.empty()
        return cls(
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.classes for part in parts]),
            torch.cat([part.scores for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({len(self)}, classes={self.classes.unique().tolist()})"

    def pick(self, rows: Tensor | slice) -> "ImageBoxes":
        """The boxes of some rows (indices, a mask or a slice), in that order."""
        return ImageBoxes(self.boxes[rows], self.classes[rows], self.scores[rows])

    def top(self, k: int) -> "ImageBoxes":
        """The :obj:`k` boxes of the highest scores, highest first; all of them if there are fewer.

        Raises:
            InputError: If :obj:`k` is negative.
        """
        if k < 0:
            raise InputError(f"k={k}: want 0 or more")
        return self.pick(self.scores.argsort(descending=True, stable=True)[:k])

    def nms(self, iou: float = 0.3) -> "ImageBoxes":
        """Class-wise non-maximum suppression; the highest score first.

        Args:
            iou (float): A box is dropped if it overlaps a better one of its class by more than
                this. (default: :obj:`0.3`)
        """
        return self.pick(batched_nms(self.boxes, self.scores, self.classes, iou))

    def voted(self, voters: "ImageBoxes", iou: float = 0.3) -> "ImageBoxes":
        r"""Move each box to the mean of the voters around it (`box voting
        <https://arxiv.org/abs/1505.01749>`_).

        .. math::
            b_i = \frac{\sum_{j \in \mathcal{N}(i)} s_j b_j}{\sum_{j \in \mathcal{N}(i)} s_j},
            \qquad \mathcal{N}(i) = \{ j : c_j = c_i, \, \mathrm{IoU}(b_i, b_j) \geq \tau \}

        Classes and scores stay; so does a box without a voter.

        Args:
            voters (ImageBoxes): Usually all boxes that these were chosen from by :meth:`nms`.
            iou (float): The overlap :math:`\tau`. (default: :obj:`0.3`)
        """
        near = (box_iou(self.boxes, voters.boxes) >= iou) & (
            self.classes[:, None] == voters.classes
        )
        weight = (near * voters.scores).double()  # [n, m]; autocast leaves doubles alone
        total = weight.sum(dim=1, keepdim=True)
        mean = weight @ voters.boxes.double() / total.clamp(min=torch.finfo(total.dtype).tiny)
        boxes = torch.where(total > 0, mean.float(), self.boxes)
        return ImageBoxes(boxes, self.classes, self.scores)

    def shown(
        self,
        crop: Tensor | Sequence[float],
        size: tuple[int, int],
        flip: bool = False,
        min_visible: float = 0.25,
    ) -> "ImageBoxes":
        r"""The boxes in what a transform shows of the photo, cut at its borders.

        Squashing the photo to a square is :obj:`crop=(0, 0, W, H)` and :obj:`size=(side, side)`;
        with the size of a feature map, the boxes come out in its pixels.

        Args:
            crop (torch.Tensor): The part of the photo that is shown, xyxy.
            size (tuple of int): Height and width of the result.
            flip (bool): Whether it is mirrored. (default: :obj:`False`)
            min_visible (float): Share of a box's area that must be seen; boxes of which less is
                seen are dropped, as are boxes of which nothing is. (default: :obj:`0.25`)
        """
        moved = boxes_to_view(self.boxes, crop, size, flip)
        seen = clip_boxes_to_image(moved, size)
        keep = box_area(seen) >= min_visible * box_area(moved)
        keep &= (seen[:, 2] > seen[:, 0]) & (seen[:, 3] > seen[:, 1])
        return ImageBoxes(seen[keep], self.classes[keep], self.scores[keep])


class BoxSource(Protocol):
    """Anything that gives the boxes of a photo by its image id."""

    @property
    def ledger(self) -> SupervisionLedger:
        """What the boxes were made from."""
        ...

    def __call__(self, image_id: str) -> ImageBoxes:
        """The boxes of a photo, in its own pixels; :meth:`ImageBoxes.empty` if there are none.

        Raises:
            InputError: If the source knows no such photo.
        """
        ...


def boxes_to_view(
    boxes: Tensor, crop: Tensor | Sequence[float], size: tuple[int, int], flip: bool = False
) -> Tensor:
    r"""Carry boxes from pixels of the photo to pixels of what a transform shows of it.

    .. math::
        u = \frac{W (x - x_1)}{x_2 - x_1}, \qquad v = \frac{H (y - y_1)}{y_2 - y_1}

    and :math:`W - u` for :math:`u`, the two sides exchanged, if mirrored. Nothing is cut off, so
    :func:`boxes_to_photo` is the inverse; see :meth:`ImageBoxes.shown` for what is seen.

    Args:
        boxes (torch.Tensor): Boxes xyxy.
        crop (torch.Tensor): The part of the photo that is shown, :math:`(x_1, y_1, x_2, y_2)`.
        size (tuple of int): Height :math:`H` and width :math:`W` of the result.
        flip (bool): Whether the result is mirrored. (default: :obj:`False`)

    Shapes:
        - **boxes:** :math:`(n, 4)`
        - **output:** :math:`(n, 4)`
    """
    origin, scale = _view(boxes, crop, size)
    moved = (boxes - origin) * scale
    return _mirrored(moved, size[1]) if flip else moved


def boxes_to_photo(
    boxes: Tensor, crop: Tensor | Sequence[float], size: tuple[int, int], flip: bool = False
) -> Tensor:
    """Carry boxes back from what a transform shows to pixels of the photo.

    The inverse of :func:`boxes_to_view`, with the same arguments.
    """
    origin, scale = _view(boxes, crop, size)
    boxes = _mirrored(boxes, size[1]) if flip else boxes
    return boxes / scale + origin


def check_boxes(
    boxes: ImageBoxes,
    image_ids: Sequence[str],
    sizes: Mapping[str, tuple[float, float]],
    num_classes: int,
    source: str,
) -> None:
    """Raise one :class:`InputError` for all boxes that cannot be used.

    Args:
        boxes (ImageBoxes): Boxes of any number of photos.
        image_ids (sequence of str): The photo of each box.
        sizes (mapping): Height and width of each photo that there is.
        num_classes (int): :math:`K`.
        source (str): Where the boxes come from, for the message.

    Raises:
        InputError: If a box is of an unknown photo or class, lies outside its photo, has no area,
            or its coordinates or score are not finite or the score not in :math:`[0, 1]`: the
            count and the first offenders of each kind.
    """
    raise_for_rows(
        box_problems(boxes, image_ids, sizes, num_classes),
        lambda row: f"{boxes.boxes[row].tolist()} of image '{image_ids[row]}'",
        len(boxes),
        source,
    )


def box_problems(
    boxes: ImageBoxes,
    image_ids: Sequence[str],
    sizes: Mapping[str, tuple[float, float]],
    num_classes: int,
) -> dict[str, list[int]]:
    """What :func:`check_boxes` looks for: the rows of each kind of problem."""
    if len(image_ids) != len(boxes):
        raise InputError(f"{len(boxes)} boxes but {len(image_ids)} image ids")
    known = torch.tensor([image_id in sizes for image_id in image_ids], dtype=torch.bool)
    height, width = (
        torch.tensor([sizes.get(image_id, (0, 0)) for image_id in image_ids], dtype=torch.float)
        .view(-1, 2)
        .unbind(1)
    )
    x1, y1, x2, y2 = boxes.boxes.unbind(1)
    finite = boxes.boxes.isfinite().all(1)
    flat = finite & ((x2 <= x1) | (y2 <= y1))
    outside = (torch.minimum(x1, y1) < -_SLACK) | (x2 > width + _SLACK) | (y2 > height + _SLACK)
    outside |= (torch.minimum(x2, y2) <= 0) | (x1 >= width) | (y1 >= height)
    masks = {
        "of images that the data set does not have": ~known,
        f"of classes other than 1..{num_classes}": (boxes.classes < 1)
        | (boxes.classes > num_classes),
        "with coordinates that are not numbers": ~finite,
        "without area": flat,
        "outside the photo": known & finite & ~flat & outside,
        "with a score that is not a number in [0, 1]": ~((boxes.scores >= 0) & (boxes.scores <= 1)),
    }
    return {kind: mask.nonzero()[:, 0].tolist() for kind, mask in masks.items() if mask.any()}


def raise_for_rows(
    problems: Mapping[str, Sequence[int]], describe: Callable[[int], str], total: int, source: str
) -> None:
    """Raise one error for rows with problems, if there are any.

    Args:
        problems (mapping): Rows of each kind of problem.
        describe (callable): Names a row.
        total (int): How many rows there are, good and bad.
        source (str): Where they come from.

    Raises:
        InputError: The count, and per kind the count and the first offenders.
    """
    if not problems:
        return
    bad = len({row for rows in problems.values() for row in rows})
    lines = [f"{kind}: {first_of(map(describe, rows))}" for kind, rows in problems.items()]
    raise InputError(f"{source}: {bad} of {total} boxes cannot be used\n  " + "\n  ".join(lines))


def _view(
    boxes: Tensor, crop: Tensor | Sequence[float], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Origin and scale of a view, both [4] for xyxy."""
    crop = torch.as_tensor(crop, dtype=boxes.dtype, device=boxes.device)
    extent = crop[2:] - crop[:2]
    if not (extent > 0).all():
        raise InputError(f"crop={crop.tolist()}: want x1 < x2 and y1 < y2")
    scale = extent.new_tensor([size[1], size[0]]) / extent
    return crop[:2].repeat(2), scale.repeat(2)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)
