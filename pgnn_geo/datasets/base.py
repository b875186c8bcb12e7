"""What every data set of tagged photos shares: items, and one check of all files."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from pgnn_geo.datasets.listing import first_of
from pgnn_geo.datasets.photo_file import (
    as_rgb,
    load_photo,
    load_thumbnail,
    opened,
    orientation,
    turned_size,
)
from pgnn_geo.datasets.tags import check_classes
from pgnn_geo.errors import InputError, note
from pgnn_geo.io.files import check_names
from pgnn_geo.io.masks import IGNORE, load_mask

Item = dict[str, Any]
Transform = Callable[[Item], Item]


class TaggedDataset(Dataset[Item]):
    r"""Photos with image-level tags, and masks for measuring where there are some.

    An item is a dictionary: :obj:`image` (:math:`(3, H, W)`, uint8 before transforms),
    :obj:`tags` (:math:`(K)`, absent if the split has none), :obj:`mask` (:math:`(H, W)`, uint8;
    0 background, 1..K, 255 ignore; only if asked for and there), :obj:`image_id`, :obj:`index`,
    :obj:`size` (:math:`(H, W)` of the photo), and what the transforms show of it: :obj:`crop`
    (:math:`x_1, y_1, x_2, y_2` in pixels of the photo) and :obj:`flip`.

    Args:
        image_ids (sequence of str): :math:`M` unique names: relative paths below any folder.
        images (sequence of Path): :math:`M` JPEG or PNG files.
        classes (sequence of str): :math:`K` foreground classes.
        tags (Tensor, optional): Multi-hot tags of shape :math:`(M, K)`.
        masks (sequence of Path, optional): :math:`M` palette or grey PNG files; read only if given.
            :obj:`None` in place of a file says that this photo has no mask, see
            :meth:`where_masked`.
        mask_labels (sequence of int, optional): Label in the files that means each class, by
            default 1..K.
        num_labels (int, optional): Foreground labels that the files may hold, by default
            :math:`K`; those of no class become 255.
        upright (bool): Turn photos as their EXIF orientation says.
        transform (callable, optional): Maps an item to an item.
        max_pixels (int, optional): Largest photo that is read, see
            :func:`~pgnn_geo.datasets.load_photo`.

    Raises:
        InputError: If the arguments do not fit together, an id leaves its folder, a class is called
            background, or there are more than label images can tell. From an item: if its photo or
            mask cannot be used.
    """

    def __init__(
        self,
        image_ids: Sequence[str],
        images: Sequence[Path],
        classes: Sequence[str],
        tags: Tensor | None,
        masks: Sequence[Path | None] | None = None,
        mask_labels: Sequence[int] | None = None,
        num_labels: int | None = None,
        upright: bool = False,
        transform: Transform | None = None,
        max_pixels: int | None = None,
    ) -> None:
        check_classes(classes)
        self.image_ids = list(image_ids)
        check_names(self.image_ids)
        self.classes = tuple(classes)
        self.tags = tags
        self.transform = transform
        self._images = list(images)
        self._masks = None if masks is None else list(masks)
        self._upright = upright
        self._max_pixels = max_pixels
        count, shape = len(self.image_ids), None if tags is None else tuple(tags.shape)
        if shape not in (None, (count, len(self.classes))):
            raise InputError(f"tags: shape {shape}, want {(count, len(self.classes))}")
        if {len(self._images), len(self._masks or self._images)} - {count}:
            raise InputError(f"images and masks must number {count}, as the image ids do")
        labels = range(1, len(self.classes) + 1) if mask_labels is None else mask_labels
        num_labels = len(self.classes) if num_labels is None else num_labels
        if masks is not None and num_labels >= IGNORE:
            raise InputError(f"masks can tell at most {IGNORE - 1} classes, got {num_labels}")
        self._table = _label_table(labels if masks is not None else (), num_labels)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({len(self)}, classes={len(self.classes)})"

    def image_path(self, index: int) -> Path:
        """The photo's file."""
        return self._images[index]

    @property
    def max_pixels(self) -> int | None:
        """The bound on photos and masks, if it is not the usual one."""
        return self._max_pixels

    @property
    def has_masks(self) -> bool:
        """Whether a photo has a mask, to measure against."""
        return any(path is not None for path in self._masks or ())

    def mask_path(self, index: int) -> Path | None:
        """The mask's file, :obj:`None` if masks were not asked for or it has none."""
        return None if self._masks is None else self._masks[index]

    def photo_size(self, index: int) -> tuple[int, int]:
        """Height and width of a photo, from its header: nothing is decoded.

        Raises:
            InputError: If the file is missing or its header cannot be read.
        """
        with opened(self._images[index], self._max_pixels) as image:
            return turned_size(image.size, orientation(image) if self._upright else 1)

    def thumbnail(self, index: int, side: int) -> Image:
        """The photo no larger than a square of :obj:`side` pixels, as a Pillow image.

        Raises:
            InputError: If its file is missing or cannot be decoded.
        """
        return load_thumbnail(self._images[index], side, self._upright, self._max_pixels)

    def __getitem__(self, index: int) -> Item:
        photo = load_photo(self._images[index], self._upright, self._max_pixels)
        image = tv_tensors.Image(photo)
        height, width = image.shape[-2:]
        item: Item = {
            "image": image,
            "image_id": self.image_ids[index],
            "index": index,
            "crop": torch.tensor([0, 0, width, height], dtype=torch.float),
            "flip": False,
            "size": torch.tensor([height, width]),
        }
        if self.tags is not None:
            item["tags"] = self.tags[index]
        if self.mask_path(index) is not None:
            item["mask"] = tv_tensors.Mask(self.read_mask(index, (height, width)))
        return item if self.transform is None else self.transform(item)

    def read_mask(self, index: int, size: tuple[int, int] | None = None) -> Tensor:
        """Read a mask :math:`(H, W)`, uint8: 0 for background, 1..K, 255; no transform is applied.

        Args:
            index (int): Of the photo.
            size (tuple of int, optional): Height and width that it must have.

        Raises:
            InputError: If masks were not asked for, or it is missing, damaged, of another size or
                holds labels of no class.
        """
        if self._masks is None:
            raise InputError("This data set was opened without masks.")
        if (path := self._masks[index]) is None:
            raise InputError(f"image {self.image_ids[index]} has no mask; see where_masked()")
        mask = load_mask(path, self._max_pixels).numpy()
        if problem := self._mask_problem(mask, size or mask.shape):
            raise InputError(f"mask '{path}' {problem}")
        return torch.from_numpy(self._table[mask].astype(np.uint8))

    def with_transform(self, transform: Transform | None) -> Self:
        """The same photos under another transform; nothing is copied."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def with_tags(self, tags: Tensor) -> Self:
        """The same photos with other tags.

        Args:
            tags (torch.Tensor): Multi-hot tags :math:`(M, K)`.

        Raises:
            InputError: If their shape is another one.
        """
        if tags.shape != (len(self), len(self.classes)):
            raise InputError(
                f"tags: shape {tuple(tags.shape)}, want {(len(self), len(self.classes))}"
            )
        other = copy.copy(self)
        other.tags = tags
        return other

    def with_masks(self, paths: Sequence[Path]) -> Self:
        """The same photos with other masks, such as pseudo-labels: 0, 1..K as they are, 255.

        Args:
            paths (sequence of Path): :math:`M` palette or grey PNG files.

        Raises:
            InputError: If there is not one file for each photo.
        """
        if len(paths) != len(self):
            raise InputError(f"masks must number {len(self)}, as the photos do; got {len(paths)}")
        other = copy.copy(self)
        other._masks = list(paths)
        other._table = _label_table(range(1, len(self.classes) + 1), len(self.classes))
        return other

    def without_masks(self) -> Self:
        """The same photos, of which no mask is read."""
        other = copy.copy(self)
        other._masks = None
        return other

    def where_masked(self) -> Self:
        """The photos that have masks, as a data set of its own: what there is to measure on.

        Raises:
            InputError: If no photo has one.
        """
        there = [i for i in range(len(self)) if self.mask_path(i) is not None]
        if not there:
            raise InputError(f"none of the {len(self)} photos has a mask")
        if len(there) == len(self):
            return self
        note(f"{len(there)} of {len(self)} photos have true masks; the others are not measured")
        return self.subset(there)

    def subset(self, indices: Sequence[int]) -> Self:
        """The photos of these indices, in this order, as a data set of its own.

        Raises:
            InputError: If an index is not there.
        """
        if wrong := [i for i in indices if not 0 <= i < len(self)]:
            raise InputError(
                f"indices must lie in 0..{len(self) - 1}, got {first_of(map(str, wrong))}"
            )
        other = copy.copy(self)
        other.image_ids = [self.image_ids[i] for i in indices]
        other._images = [self._images[i] for i in indices]
        other._masks = None if self._masks is None else [self._masks[i] for i in indices]
        other.tags = None if self.tags is None else self.tags[list(indices)]
        return other

    def check(self, decode: bool = True) -> list[str]:
        """Look for everything that would stop a run: all problems, one line each.

        Missing, foreign and (if decoded) truncated photos, photos without a tag, and masks that
        are missing, of another mode or size, or hold labels of no class.

        Args:
            decode (bool): Decode every photo; otherwise only read its header.
        """
        with ThreadPoolExecutor() as pool:
            found = pool.map(partial(self._problems, decode=decode), range(len(self)))
            return [problem for problems in found for problem in problems]

    def validate(self, decode: bool = True) -> None:
        """Raise one :class:`InputError` for all that :meth:`check` finds."""
        if problems := self.check(decode):
            raise InputError(
                f"{len(problems)} problem(s) in {self!r}:\n  " + "\n  ".join(problems[:20])
            )

    def _mask_problem(self, mask: NDArray[np.uint8], size: tuple[int, ...]) -> str | None:
        if mask.shape != size:
            return f"is {mask.shape[1]} x {mask.shape[0]}, its photo {size[1]} x {size[0]}"
        wrong = self._table[mask] < 0
        if wrong.any():
            labels = first_of(map(str, np.unique(mask[wrong])))
            return f"has labels {labels}, want 0..{(self._table >= 0).sum() - 2} or {IGNORE}"
        return None

    def _problems(self, index: int, decode: bool) -> list[str]:
        problems, size = [], None
        path = self._images[index]
        if self.tags is not None and not self.tags[index].any():
            problems.append(f"image {self.image_ids[index]} has no tags")
        try:
            with opened(path, self._max_pixels) as image:
                raw = image.size
                if decode:
                    # An eighth of the size: all of the file is still read, so that a missing
                    # end shows, but most of the arithmetic is left out.
                    image.draft(None, (1, 1))
                    as_rgb(image)
                size = turned_size(raw, orientation(image) if self._upright else 1)
        except InputError as error:
            problems.append(str(error))
        if (mask_path := self.mask_path(index)) is not None:
            try:
                mask = load_mask(mask_path, self._max_pixels).numpy()
            except InputError as error:
                problems.append(str(error))
            else:
                if problem := self._mask_problem(mask, size or mask.shape):
                    problems.append(f"mask '{mask_path}' {problem}")
        return problems


def _label_table(mask_labels: Sequence[int], num_labels: int) -> NDArray[np.int16]:
    """The new label of each label in a file; -1 where a file must not hold it."""
    table = np.full(256, -1, dtype=np.int16)
    table[1 : num_labels + 1] = IGNORE
    table[[0, IGNORE]] = 0, IGNORE
    table[np.array(mask_labels, dtype=int)] = np.arange(1, len(mask_labels) + 1)
    return table
