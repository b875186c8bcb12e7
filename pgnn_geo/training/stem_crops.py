"""What stage 2 sees of photos behind the frozen stages: windows, with the labels in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize_image

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.views import Progress, View, no_progress
from pgnn_geo.io.masks import IGNORE
from pgnn_geo.nn.backbones import Backbone
from pgnn_geo.precision import Precision
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.stems import stem_banks


class StemCrops(Dataset[Any]):
    """Random windows of photos that are already passed through the backbone's frozen stages.

    The counterpart of :class:`~pgnn_geo.datasets.TrainTransform` at one scale. The item of a photo
    is drawn: mirrored or not, and which window of what it fills of the square. It has the
    :obj:`stem` :math:`(C, h, w)` and the :obj:`mask` :math:`(crop, crop)`, 255 beyond the photo.

    Args:
        dataset (TaggedDataset): The photos, with label images.
        banks (tuple of FeatureBank): The padded photos as they are, and mirrored.
        size (int): Long side of the photos in these in pixels.
        crop (int): Side of the window in pixels, rounded to whole positions of the stem.

    Raises:
        InputError: If the window is larger than the photos, or the stem has no whole stride.
    """

    def __init__(
        self, dataset: TaggedDataset, banks: tuple[FeatureBank, ...], size: int, crop: int
    ) -> None:
        self.stride, rest = divmod(size, banks[0].shape[-1])
        if rest:
            raise InputError(
                f"size={size}: want a multiple of the stride of the frozen stages' output, which "
                f"has {banks[0].shape[-1]} positions per side"
            )
        if not self.stride <= crop <= size:
            raise InputError(f"crop={crop}: want {self.stride} to {size}, the size of the photos")
        self.dataset = dataset
        self.banks = banks
        self.size = size
        self.window = round(crop / self.stride)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        flip = int(torch.randint(len(self.banks), ()))
        mask = self._mask(index, bool(flip))
        rows, columns = (self._draw(side) for side in mask.shape)
        height, width = (cells.stop * self.stride for cells in (rows, columns))
        mask = mask[rows.start * self.stride : height, columns.start * self.stride : width]
        bottom, right = (self.window * self.stride - n for n in mask.shape)
        return {
            "stem": self.banks[flip].read(index, rows, columns),
            "mask": F.pad(mask, (0, right, 0, bottom), value=IGNORE),
        }

    def whole(self, index: int, flip: bool) -> Tensor:
        """Return the stem :math:`(C, h, w)` of what a photo, or its mirror image, fills."""
        rows, columns = (
            self._cells(side) for side in self._resized(self.dataset.photo_size(index))
        )
        return self.banks[flip].read(index, slice(rows), slice(columns))

    def _resized(self, size: Sequence[int]) -> list[int]:
        return [max(1, round(side * self.size / max(size))) for side in size]

    def _cells(self, side: int) -> int:
        return -(-side // self.stride)

    def _draw(self, side: int) -> slice:
        """A window along a side of so many pixels: within the photo where it is large enough."""
        room = max(0, self._cells(side) - self.window)
        start = int(torch.randint(room + 1, ()))
        return slice(start, start + self.window)

    def _mask(self, index: int, flip: bool) -> Tensor:
        mask = self.dataset.read_mask(index)
        size = self._resized(mask.shape)
        mask = resize_image(mask[None], size, interpolation=InterpolationMode.NEAREST_EXACT)[0]
        return mask.flip(-1) if flip else mask


def padded_stems(
    backbone: Backbone,
    dataset: TaggedDataset,
    folder: Path,
    size: int,
    precision: Precision = "auto",
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> tuple[FeatureBank, ...]:
    """Run the frozen stages on the padded photos, unless that is done: as they are, and mirrored.

    Args:
        backbone (Backbone): Its frozen stages are run.
        dataset (TaggedDataset): The photos.
        folder (Path): Where the outputs are kept.
        size (int): Long side of the photos, and side of the square, in pixels.
        precision, progress, ranks: See :func:`~pgnn_geo.features.stem_bank`.
    """
    views = (View(size, pad=True), View(size, flip=True, pad=True))
    banks = stem_banks(backbone, dataset, folder, views, precision, progress, ranks)
    return tuple(banks.values())
