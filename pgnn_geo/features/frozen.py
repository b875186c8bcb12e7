"""What a pretrained backbone says of every photo, before anything has been trained."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
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

#: Photos that go through a GPU at a time.
_GPU_BATCH = 16


@dataclass(frozen=True)
class FrozenFeatureConfig:
    """How a frozen backbone sees photos.

    Args:
        size (int): Side of the square that photos are squashed to, in pixels.
        stride (int): Stride of the feature map.
        output_stride (int): Stride of the backbone, or of those that it can have the nearest (a
            transformer has that of its patches); a stage with another one than :obj:`stride` is
            averaged or interpolated. At 8 the last stage of a VGG-16 takes four times as long as at
            16.
        flip (bool): Average the features with those of the mirrored photo.
        precision (str): :obj:`"auto"` or one of Lightning's names.

    Raises:
        InputError: If the size is not a multiple of the stride.
    """

    size: int = 256
    stride: int = 8
    output_stride: int = 16
    flip: bool = True
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % self.stride:
            raise InputError(
                f"size={self.size}: want 32 or more, a multiple of the stride {self.stride}"
            )

    @property
    def side(self) -> int:
        """Positions per side of the feature map."""
        return self.size // self.stride


@torch.inference_mode()
def frozen_features(
    backbone: Backbone,
    dataset: TaggedDataset,
    folder: Path,
    config: FrozenFeatureConfig | None = None,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> FeatureBank:
    r"""Return the bank of features by which positions of photos are compared.

    The outputs of the backbone's last two stages, each averaged with that of the mirrored photo,
    scaled to unit length at every position, and put side by side:

    .. math::
        \mathbf{f} = \bigl( \hat{\mathbf{g}}_{L-1}, \, \hat{\mathbf{g}}_L \bigr), \qquad
        \mathbf{g}_l = \tfrac{1}{2} \bigl( \phi_l(I) + m \, \phi_l(m \, I) \bigr)

    with :math:`m` the mirroring. The bank is written in one pass and used again by every later call
    with the same photos, weights and settings. On a CPU photos go through the network one by one,
    so that the features of a photo do not depend on which others there are.

    Args:
        backbone (Backbone): The network; it moves nowhere and is not changed.
        dataset (TaggedDataset): The photos.
        folder (Path): Where banks are kept.
        config (FrozenFeatureConfig, optional): How photos are seen; default values if not given.
        progress (callable, optional): Progress display.
        ranks (Ranks): The processes that share the photos; on a CPU they write what one would.
            (default: this one alone)

    Returns:
        Features :math:`(M, C, h, w)`, :math:`C` the channels of both stages and :math:`h = w` =
        size / stride.
    """
    config = config or FrozenFeatureConfig()
    stride, training = backbone.output_stride, backbone.training
    backbone.eval().set_output_stride(backbone.nearest_stride(config.output_stride))
    try:
        key: dict[str, object] = {
            "photos": ranks.first(
                lambda: digest_of_photos([dataset.image_path(i) for i in range(len(dataset))])
            ),
            "weights": digest_of_tensors(backbone.state_dict().values()),
            "size": config.size,
            "stride": config.stride,
            "output_stride": backbone.output_stride,
            "flip": config.flip,
            "precision": resolve_precision(config.precision, backbone.device),
        }
        gpu = backbone.device.type == "cuda"
        batch, workers = (_GPU_BATCH, min(8, os.cpu_count() or 1)) if gpu else (1, 1)

        def batches(first: int) -> Iterator[Tensor]:
            image = on_device(torch.zeros(1, 3, 32, 32), backbone.device)
            channels = sum(part.size(1) for part in _stages(backbone, image, 1))
            size = FeatureBank.file_size(len(dataset), channels, config.side) / 1e9
            photos = photo_batches(dataset, View(config.size), batch, workers, first)
            title = f"features, {size:.2g} GB in {folder}"
            for images in progress(photos, title, math.ceil((len(dataset) - first) / batch)):
                yield _features(backbone, images, config)

        name = f"frozen-{View(config.size)}-{config.stride}{'-both' if config.flip else ''}.npy"
        return FeatureBank.build(folder / name, batches, len(dataset), key, ranks)
    finally:
        backbone.set_output_stride(stride).train(training)


def _features(backbone: Backbone, images: Tensor, config: FrozenFeatureConfig) -> Tensor:
    images = on_device(images, backbone.device)
    views = torch.cat([images, images.flip(-1)]) if config.flip else images
    with autocast(config.precision, backbone.device):
        levels = _stages(backbone, views, config.side)
    outputs = []
    for level in levels:
        level = level.float()
        if config.flip:
            plain, mirrored = level.chunk(2)
            level = (plain + mirrored.flip(-1)) / 2
        outputs.append(F.normalize(level, dim=1))
    return torch.cat(outputs, dim=1)


def _stages(backbone: Backbone, images: Tensor, side: int) -> list[Tensor]:
    """Return the outputs of the last two stages, at so many positions per side."""
    levels = backbone.last_two(images)
    return [
        F.adaptive_avg_pool2d(level, side)
        if level.size(-1) >= side
        else F.interpolate(level, (side, side), mode="bilinear", align_corners=False)
        for level in levels
    ]
