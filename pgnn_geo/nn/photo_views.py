"""A segmentation network run on one photo: at several scales, and on its mirror image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from pgnn_geo.errors import InputError
from pgnn_geo.nn.view_average import ViewAverage
from pgnn_geo.precision import Precision, autocast

MAX_SIDE = 1024


class PhotoNetwork(nn.Module):
    """A network that gives the logits of photos: :class:`DeepLabV2`, or one in an ONNX file."""

    num_classes: int  #: foreground classes
    config: dict[str, Any]  #: JSON values that tell it from others of the same parameters

    @property
    def device(self) -> torch.device:
        """Where it wants photos."""
        raise NotImplementedError


@torch.no_grad()
def photo_views(
    network: PhotoNetwork,
    image: Tensor,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    precision: Precision = "auto",
    max_side: int | None = MAX_SIDE,
    tags: Tensor | None = None,
    side: int | None = None,
) -> ViewAverage:
    """Run a network on every view of a photo.

    Args:
        network (PhotoNetwork): The network.
        image (torch.Tensor): Photo :obj:`[3, H, W]`, uint8.
        scales (sequence of float): Multiples of :obj:`side` that are averaged.
        flip (bool): Average with the mirrored photo. (default: :obj:`True`)
        precision (str): :obj:`"auto"` or one of Lightning's names. (default: :obj:`"auto"`)
        max_side (int, optional): Longer side to which larger photos are scaled down before all
            else; :obj:`None` for no bound. (default: :obj:`1024`)
        tags (torch.Tensor, optional): Multi-hot tags :obj:`[K]`; other classes get probability
            zero.
        side (int, optional): Length of the longer side at scale 1, the photo's own if not given.
            (default: :obj:`None`)

    Raises:
        InputError: If the photo is no such tensor, or an argument is out of range.
    """
    check_photo(image)
    check_scales(scales, max_side)
    device, num_labels = network.device, network.num_classes + 1
    whole, image = image, shrink(image, max_side).as_subclass(Tensor).to(device)
    labels = torch.arange(num_labels)
    if tags is not None:
        labels = torch.cat([labels[:1], labels[1:][tags.bool().cpu()]])
    unit = 1.0 if side is None else side / max(image.shape[1:])
    maps = []
    with evaluating(network), autocast(precision, device):
        for scale in scales:
            x = photo_pixels(image, unit * scale)
            for mirrored in (False, True)[: 1 + flip]:
                logits = network(x.flip(-1) if mirrored else x)[0].float()
                logits = logits.flip(-1) if mirrored else logits
                maps.append(logits if tags is None else logits[labels.to(device)])
    views = ViewAverage(maps, labels, num_labels)
    return views if image.shape == whole.shape else views.at(image.shape[1:])


def photo_pixels(image: Tensor, scale: float) -> Tensor:
    """Return a photo [3, H, W], uint8, as a network sees it: [1, 3, h, w] in [0, 1].

    Args:
        image (torch.Tensor): The photo.
        scale (float): Its size in the network, as a multiple of its own.
    """
    size = [max(1, round(n * scale)) for n in image.shape[1:]]
    pixels = F.to_dtype(F.resize(image, size, antialias=True), scale=True)
    return pixels[None].contiguous(memory_format=torch.channels_last)


def check_photo(image: Tensor) -> None:
    """Raise an :class:`InputError` unless :obj:`image` is a photo :obj:`[3, H, W]`, uint8."""
    if image.dim() != 3 or len(image) != 3 or image.dtype != torch.uint8 or 0 in image.shape:
        raise InputError(f"want a photo [3, H, W] in uint8, got {[*image.shape]} in {image.dtype}")


def check_scales(scales: Sequence[float], max_side: int | None) -> None:
    """Raise an :class:`InputError` unless these are sizes that a network can be run at."""
    if not scales or min(scales) <= 0:
        raise InputError(f"'scales' must be one or more positive numbers, got {list(scales)}.")
    if max_side is not None and max_side < 1:
        raise InputError(f"'max_side' must be positive, got {max_side}.")


def shrink(image: Tensor, max_side: int | None) -> Tensor:
    """Scale a photo :obj:`[3, H, W]` down so that no side exceeds :obj:`max_side`.

    Args:
        image (torch.Tensor): The photo.
        max_side (int, optional): The bound; :obj:`None` for no bound.
    """
    if max_side is None or max(image.shape[1:]) <= max_side:
        return image
    ratio = max_side / max(image.shape[1:])
    return F.resize(image, [max(1, round(n * ratio)) for n in image.shape[1:]], antialias=True)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode for the time of a :obj:`with` block."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
