"""How photos are looked at before a backbone sees them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from pgnn_geo.datasets import EvalTransform, SquareTransform, TaggedDataset
from pgnn_geo.errors import InputError, plain_errors

#: Wraps an iterable of batches for a progress display: ``(iterable, title, total) -> iterable``.
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


def no_progress(iterable: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """Display nothing."""
    return iterable


@dataclass(frozen=True)
class View:
    """One way of looking at every photo: as a square, perhaps mirrored.

    Args:
        size (int): Side of the square in pixels.
        flip (bool): Mirror it. (default: :obj:`False`)
        pad (bool): Bring the photo's long side to :obj:`size` and pad right and bottom, instead of
            squashing the photo to the square. (default: :obj:`False`)
    """

    size: int
    flip: bool = False
    pad: bool = False

    def __str__(self) -> str:
        return f"{self.size}{'-pad' if self.pad else ''}{'-flip' if self.flip else ''}"

    @property
    def transform(self) -> SquareTransform | EvalTransform:
        """What shows it."""
        if self.pad:
            return EvalTransform(self.size, multiple=self.size, flip=self.flip)
        return SquareTransform(self.size, self.flip)


def photo_batches(
    dataset: TaggedDataset, view: View, batch_size: int = 8, workers: int = 1, first: int = 0
) -> Iterator[Tensor]:
    """Yield the photos of a data set in order, as :obj:`[b, 3, size, size]` in :math:`[0, 1]`.

    Args:
        dataset (TaggedDataset): The photos.
        view (View): How they are seen.
        batch_size (int): Photos in a batch. (default: :obj:`8`)
        workers (int): Processes that decode. (default: :obj:`1`)
        first (int): The photo to begin with. (default: :obj:`0`)
    """
    photos = Subset(dataset.with_transform(view.transform), range(first, len(dataset)))
    loader = DataLoader(
        photos,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_images,
        pin_memory=torch.cuda.is_available(),
    )
    with plain_errors():
        yield from loader


def _images(items: list[dict[str, Any]]) -> Tensor:
    return torch.stack([item["image"].as_subclass(Tensor) for item in items])


def digest_of_photos(paths: Sequence[Path]) -> str:
    """Return a digest of the content of files, whatever their names and dates.

    Raises:
        InputError: If one cannot be read.
    """
    total = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as handle:
                total.update(hashlib.file_digest(handle, "sha256").digest())
        except OSError as error:
            raise InputError(f"photo '{path}' cannot be read: {error}") from error
    return total.hexdigest()


def digest_of_tensors(tensors: Iterable[Tensor]) -> str:
    """Return a digest of the values of tensors, such as the weights of a network."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
