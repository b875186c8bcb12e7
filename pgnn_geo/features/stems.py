"""Outputs of a backbone's frozen stages for a whole data set, kept between runs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.device import on_device
from pgnn_geo.features.views import (
    Progress,
    View,
    digest_of_photos,
    digest_of_tensors,
    no_progress,
    photo_batches,
)
from pgnn_geo.nn.backbones import Backbone
from pgnn_geo.precision import Precision, autocast, resolve_precision
from pgnn_geo.ranks import ALONE, Ranks

#: Photos that go through a network at a time.
BATCH = 8


def _run(
    network: Callable[[Tensor], Tensor], x: Tensor, device: torch.device, precision: Precision
) -> Tensor:
    """Run a network without gradients."""
    with autocast(precision, device):
        return network(on_device(x, device)).float()


@torch.inference_mode()
def stem_bank(
    backbone: Backbone,
    dataset: TaggedDataset,
    folder: Path,
    view: View,
    progress: Progress = no_progress,
    precision: Precision = "auto",
    ranks: Ranks = ALONE,
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
        ranks (Ranks): The processes that share the photos. (default: this one alone)
    """
    frozen: list[Tensor] = [backbone.mean, backbone.std]
    for stage in backbone.stages[: backbone.frozen_stages]:
        frozen += [*stage.parameters(), *stage.buffers()]
    key = {
        "photos": ranks.first(
            lambda: digest_of_photos([dataset.image_path(i) for i in range(len(dataset))])
        ),
        "weights": digest_of_tensors(frozen),
        "view": str(view),
        "stages": backbone.frozen_stages,
        "precision": resolve_precision(precision, backbone.device),
    }
    if backbone.frozen_stages == len(backbone.stages):  # else its stride is that of stages to come
        key["stride"] = backbone.output_stride

    def batches(first: int) -> Iterator[Tensor]:
        photos = photo_batches(dataset, view, BATCH, first=first)
        total = -(-(len(dataset) - first) // BATCH)
        for images in progress(photos, f"frozen stages, {view}", total):
            yield _run(backbone.stem, images, backbone.device, precision)

    path = folder / f"stem-{view}.npy"
    return FeatureBank.build(path, batches, len(dataset), key, ranks, BATCH)


@torch.inference_mode()
def stem_batches(
    backbone: Backbone,
    dataset: TaggedDataset,
    view: View,
    stems: FeatureBank | None = None,
    batch_size: int = BATCH,
    precision: Precision = "auto",
    first: int = 0,
) -> Iterator[Tensor]:
    """Yield the output of the frozen stages of every photo, from its bank where there is one."""
    if stems is None:
        for images in photo_batches(dataset, view, batch_size, first=first):
            yield _run(backbone.stem, images, backbone.device, precision)
    else:
        for start in range(first, len(dataset), batch_size):
            rows = list(range(start, min(start + batch_size, len(dataset))))
            yield stems[rows].to(backbone.device, memory_format=torch.channels_last)
