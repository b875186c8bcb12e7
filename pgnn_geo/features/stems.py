"""Features of a whole data set: frozen stems kept between runs, final features per view."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pgnn_geo.datasets import EvalTransform, SquareTransform, TaggedDataset
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.nn.backbones import Backbone
from pgnn_geo.precision import Precision, autocast, resolve_precision

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
    dataset: TaggedDataset, view: View, batch_size: int = 8, workers: int = 1
) -> Iterator[Tensor]:
    """Yield the photos of a data set in order, as :obj:`[b, 3, size, size]` in :math:`[0, 1]`."""
    photos = dataset.with_transform(view.transform)
    loader = DataLoader(photos, batch_size=batch_size, num_workers=workers, collate_fn=_images)
    yield from loader


def _images(items: list[dict[str, Any]]) -> Tensor:
    return torch.stack([item["image"].as_subclass(Tensor) for item in items])


def _run(
    network: Callable[[Tensor], Tensor], x: Tensor, device: torch.device, precision: Precision
) -> Tensor:
    """Run a network without gradients; channels last, in which its convolutions are faster."""
    with autocast(precision, device):
        return network(x.to(device, memory_format=torch.channels_last)).float()


def _digest(dataset: TaggedDataset, tensors: Iterable[Tensor]) -> str:
    """Digest of the photos (names, sizes and dates of the files) and of network weights."""
    digest = hashlib.sha256()
    for i in range(len(dataset)):
        path = dataset.image_path(i)
        stat = path.stat()
        digest.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def stem_bank(
    backbone: Backbone,
    dataset: TaggedDataset,
    folder: Path,
    view: View,
    progress: Progress = no_progress,
    precision: Precision = "auto",
) -> FeatureBank:
    """Return the output of the backbone's frozen stages for one view of every photo.

    Written once and reused by every later call with the same photos and frozen weights.

    Args:
        backbone (Backbone): Its first :obj:`frozen_stages` stages are run.
        dataset (TaggedDataset): The photos.
        folder (Path): Where banks are kept.
        view (View): Size and mirroring.
        progress (callable, optional): See :data:`Progress`.
        precision (str): :obj:`"auto"` or one of Lightning's names. (default: :obj:`"auto"`)
    """
    frozen: list[Tensor] = [backbone.mean, backbone.std]
    for stage in backbone.stages[: backbone.frozen_stages]:
        frozen += [*stage.parameters(), *stage.buffers()]
    key = {
        "content": _digest(dataset, frozen),
        "view": str(view),
        "stages": backbone.frozen_stages,
        "precision": resolve_precision(precision),
    }
    photos = photo_batches(dataset, view)
    stems = (_run(backbone.stem, images, backbone.device, precision) for images in photos)
    batches = progress(stems, f"frozen stages, {view}", -(-len(dataset) // 8))
    return FeatureBank.build(folder / f"stem-{view}.npy", batches, len(dataset), key)


@torch.inference_mode()
def stem_batches(
    backbone: Backbone,
    dataset: TaggedDataset,
    view: View,
    stems: FeatureBank | None = None,
    batch_size: int = 8,
    precision: Precision = "auto",
) -> Iterator[Tensor]:
    """Yield the output of the frozen stages of every photo, from its bank where there is one."""
    if stems is None:
        for images in photo_batches(dataset, view, batch_size):
            yield _run(backbone.stem, images, backbone.device, precision)
    else:
        for start in range(0, len(dataset), batch_size):
            rows = list(range(start, min(start + batch_size, len(dataset))))
            yield stems[rows].to(backbone.device, memory_format=torch.channels_last)
