r"""Joint transforms of image and mask that keep track of what part of the photo they show.

Pixel :math:`(u, v)` of the result, of :math:`W \times H` pixels, shows the photo at

.. math::
    x = x_1 + \frac{u}{W} (x_2 - x_1), \qquad y = y_1 + \frac{v}{H} (y_2 - y_1)

with :obj:`crop` :math:`= (x_1, y_1, x_2, y_2)`, and :math:`W - u` for :math:`u` if :obj:`flip`.
A crop may reach beyond the photo: the image is the mean colour there, the mask 255.
"""

from dataclasses import dataclass

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pgnn_geo.datasets.base import Item
from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import IGNORE

MEAN_RGB = (0.485, 0.456, 0.406)
"""ImageNet's mean colour, the padding: close to zero once a backbone has normalised it."""


@dataclass(frozen=True)
class TrainTransform:
    r"""Random scale, random square crop and random mirroring.

    As in `PSA <https://arxiv.org/abs/1803.10464>`_ and
    `SEAM <https://arxiv.org/abs/2004.04581>`_, the photo's long side is resized to a random
    multiple of the crop's (there 448 to 768 for crops of 448) and padded where it is smaller.
    The crop is cut first and resized after, which shows the same and costs less.

    Args:
        size (int): Side of the result. (default: :obj:`256`)
        scale (tuple of float): Range of the photo's long side as a multiple of :obj:`size`.
            (default: :obj:`(1.0, 1.7)`)
        flip (bool): Mirror every second image. (default: :obj:`True`)
        color_jitter (bool): Change brightness, contrast and saturation by up to 0.3 and hue by
            up to 0.1, as PSA does. (default: :obj:`False`)

    Shapes:
        - **image:** :math:`(3, H, W)` uint8 to :math:`(3, size, size)` float in :math:`[0, 1]`
        - **mask:** :math:`(H, W)` to :math:`(size, size)`
    """

    size: int = 256
    scale: tuple[float, float] = (1.0, 1.7)
    flip: bool = True
    color_jitter: bool = False

    def __post_init__(self) -> None:
        _check_positive(size=self.size)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"scale: got {self.scale}, want 0 < low <= high")

    def __call__(self, item: Item) -> Item:
        """Transform one item."""
        height, width = item["image"].shape[-2:]
        draw = torch.rand(4).tolist()
        scale = self.scale[0] + draw[0] * (self.scale[1] - self.scale[0])
        side = max(1, round(max(height, width) / scale))
        left, top = (_offset(n - side, r) for n, r in zip((width, height), draw[1:3], strict=True))
        box = (left, top, left + side, top + side)
        if self.color_jitter:
            image = v2.ColorJitter(0.3, 0.3, 0.3, 0.1)(item["image"])
            item = {**item, "image": image}
        return _show(item, box, (self.size, self.size), self.flip and draw[3] < 0.5)


@dataclass(frozen=True)
class EvalTransform:
    r"""The whole photo, its aspect ratio kept.

    Args:
        size (int, optional): Length of the long side of the result; the photo's own by default.
        multiple (int): Pad right and bottom to a multiple of this. (default: :obj:`1`)
        flip (bool): Mirror every image, before it is padded. (default: :obj:`False`)

    Shapes:
        - **image:** :math:`(3, H, W)` uint8 to :math:`(3, H', W')` float in :math:`[0, 1]`
        - **mask:** :math:`(H, W)` to :math:`(H', W')`
    """

    size: int | None = None
    multiple: int = 1
    flip: bool = False

    def __post_init__(self) -> None:
        _check_positive(size=self.size, multiple=self.multiple)

    def __call__(self, item: Item) -> Item:
        """Transform one item."""
        height, width = item["image"].shape[-2:]
        ratio = 1.0 if self.size is None else self.size / max(height, width)
        h, w = (max(1, round(n * ratio)) for n in (height, width))
        item = _show(item, (0, 0, width, height), (h, w), self.flip)
        bottom, right = -h % self.multiple, -w % self.multiple
        if bottom or right:
            item.update(_pad(item, (0, 0, right, bottom)))
            beyond = width * right / w  # of the photo; mirrored, it is left of the photo
            x1, x2 = (-beyond, width) if self.flip else (0, width + beyond)
            item["crop"] = torch.tensor([x1, 0, x2, height * (1 + bottom / h)])
        return item


@dataclass(frozen=True)
class SquareTransform:
    r"""The whole photo squashed to a square, always the same way.

    Args:
        size (int): Side of the result.
        flip (bool): Mirror every image. (default: :obj:`False`)

    Shapes:
        - **image:** :math:`(3, H, W)` uint8 to :math:`(3, size, size)` float in :math:`[0, 1]`
        - **mask:** :math:`(H, W)` to :math:`(size, size)`
    """

    size: int
    flip: bool = False

    def __post_init__(self) -> None:
        _check_positive(size=self.size)

    def __call__(self, item: Item) -> Item:
        """Transform one item."""
        height, width = item["image"].shape[-2:]
        return _show(item, (0, 0, width, height), (self.size, self.size), self.flip)


def _check_positive(**sizes: int | None) -> None:
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise InputError(f"{name}: got {value}, want 1 or more")


def _offset(room: int, draw: float) -> int:
    """A uniform offset of a window: inside the photo, or around it where the photo is smaller."""
    return min(room, 0) + int(draw * (abs(room) + 1))


def _pad(item: Item, padding: tuple[int, int, int, int]) -> Item:
    """Image and mask with left, top, right, bottom pixels more."""
    image = item["image"]
    fill = [c if image.is_floating_point() else round(255 * c) for c in MEAN_RGB]
    padded: Item = {"image": tv_tensors.Image(F.pad(image, list(padding), fill=fill))}
    if "mask" in item:
        left, top, right, bottom = padding
        mask = torch.nn.functional.pad(item["mask"], (left, right, top, bottom), value=IGNORE)
        padded["mask"] = tv_tensors.Mask(mask)
    return padded


def _show(item: Item, box: tuple[int, int, int, int], size: tuple[int, int], flip: bool) -> Item:
    """The item with a box of the untransformed photo resized to a size, as float image."""
    height, width = item["image"].shape[-2:]
    x1, y1, x2, y2 = box
    inside = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    rows, columns = slice(inside[1], inside[3]), slice(inside[0], inside[2])
    shown = {n: item[n][..., rows, columns] for n in item if n in ("image", "mask")}
    padding = inside[0] - x1, inside[1] - y1, x2 - inside[2], y2 - inside[3]
    if any(padding):
        shown = _pad(shown, padding)
    image = F.resize(shown["image"], list(size), antialias=True)
    image = F.horizontal_flip(image) if flip else image
    result = {**item, "image": tv_tensors.Image(F.to_dtype(image, torch.float, scale=True))}
    if "mask" in shown:
        # v2's own rule for masks is NEAREST, which is half a pixel off when resizing.
        mask = F.resize_image(
            shown["mask"].unsqueeze(0), list(size), interpolation=v2.InterpolationMode.NEAREST_EXACT
        ).squeeze(0)
        result["mask"] = tv_tensors.Mask(F.horizontal_flip(mask) if flip else mask)
    result["crop"] = torch.tensor(box, dtype=torch.float)
    result["flip"] = bool(flip)
    return result
