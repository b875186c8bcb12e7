"""Label images on disk: PNG files with the PASCAL VOC palette, 255 meaning ignore."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write, open_file

IGNORE = 255

#: Pixels of the largest image that is opened, unless another bound is given: Pillow's own.
MAX_PIXELS = 178_956_970

#: VOC's names of the labels 1..20.
VOC_CLASSES: tuple[str, ...] = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def voc_palette() -> NDArray[np.uint8]:
    """The 256 colours of the `VOC development kit <http://host.robots.ox.ac.uk/pascal/VOC/>`_.

    Bit :math:`3j + c` of a label is bit :math:`7 - j` of its channel :math:`c`, so that labels that
    differ little differ much in colour.

    Returns:
        Array of shape :math:`(256, 3)`.
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            value = (labels >> (3 * bit + channel) & 1) << (7 - bit)
            palette[:, channel] |= value.astype(np.uint8)
    return palette


def save_mask(path: str | os.PathLike[str], mask: Tensor | ArrayLike) -> None:
    """Write a label image as a palette PNG, atomically.

    Args:
        path (str or PathLike): The file; its folder is made if it is missing.
        mask (Tensor or array): Integer labels of shape :math:`(H, W)`, each in 0 to 255.

    Raises:
        InputError: If :obj:`mask` is not such an image.
    """
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.ndim != 2 or array.dtype.kind not in "iu" or 0 in array.shape:
        raise InputError(
            f"mask for '{path}' must be integers of shape [H, W], "
            f"got {array.dtype} of shape {list(array.shape)}"
        )
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        raise InputError(f"mask for '{path}' has labels {array.min()}..{array.max()}, want 0..255")
    image = Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))
    image.putpalette(voc_palette().tobytes())  # turns mode L into P and keeps the labels
    with atomic_write(path) as handle:
        image.save(handle, format="PNG")


def load_mask(path: str | os.PathLike[str], max_pixels: int | None = None) -> Tensor:
    """Read a label image without converting colours: what the file stores are the labels.

    Args:
        path (str or PathLike): PNG of mode P (palette) or L (grey).
        max_pixels (int, optional): Bound on its width times its height, :obj:`MAX_PIXELS` if not
            given.

    Returns:
        uint8 tensor of shape :math:`(H, W)`.

    Raises:
        InputError: If the file is missing, damaged, too large, or neither a palette nor a grey
            8-bit PNG.
    """
    bound = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        # Not by Image.open, whose bound is one for the whole process and all its libraries.
        with open_file(path) as handle, PngImageFile(handle, os.fspath(path)) as image:
            if image.mode not in ("P", "L"):
                raise InputError(
                    f"mask '{path}' has mode {image.mode}; want a palette (P) or grey (L) PNG "
                    "whose values are labels"
                )
            if image.width * image.height > bound:
                raise InputError(
                    f"mask '{path}' has {image.width} x {image.height} pixels, more than the bound "
                    f"of {bound}: raise max_pixels if its photo is as large"
                )
            return torch.from_numpy(np.array(image))
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"mask '{path}' does not exist") from error
    except Exception as error:  # Pillow lets struct, zlib and other errors of its own through
        raise InputError(f"mask '{path}' cannot be read as PNG: {error}") from error


def save_maps(path: str | os.PathLike[str], maps: Sequence[Tensor]) -> None:
    """Write attention maps in :math:`[0, 1]` as bytes, atomically: :obj:`numpy.load` reads them.

    Args:
        path (str or PathLike): The ``.npy`` file.
        maps (sequence of Tensor): Maps :math:`(k, h, w)` of the tagged classes of every photo, of
            one size; in the file they stand one after the other, :math:`(R, h, w)`.
    """
    values = [(part.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu() for part in maps]
    with atomic_write(path) as handle:
        np.save(handle, torch.cat(values).numpy(), allow_pickle=False)
