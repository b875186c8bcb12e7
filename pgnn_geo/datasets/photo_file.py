"""Photos on disk: how they are opened, turned and made RGB; nobody else opens one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import open_file
from pgnn_geo.io.masks import MAX_PIXELS

#: Endings of the files that are read as photos.
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png"})

_ORIENTATION = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FORMATS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "PSD",
    b"RIFF": "WebP",
    b"%PDF": "PDF",
}


@contextmanager
def opened(path: str | os.PathLike[str], max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open a photo for a :obj:`with` block; all that goes wrong in there names the file.

    Args:
        path (str or PathLike): A JPEG or PNG file, whatever its ending.
        max_pixels (int, optional): Bound on its width times its height, :obj:`MAX_PIXELS` if not
            given.

    Raises:
        InputError: If the file is missing, is too large or cannot be decoded.
    """
    bound = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        with open_file(path) as handle:
            # Not by Image.open, whose bound is one for the whole process and all its libraries.
            head = handle.read(12)
            handle.seek(0)
            kind = photo_suffix(head)
            if kind == ".png":
                image: Image.Image = PngImageFile(handle, os.fspath(path))
            elif kind == ".jpg":
                image = jpeg_factory(handle, os.fspath(path))
            else:
                raise InputError(
                    f"photo '{path}' cannot be decoded: {_kind(head)}; convert it to JPEG or PNG, "
                    "or copy it again"
                )
            with image:
                if image.width * image.height > bound:
                    raise InputError(
                        f"photo '{path}' has {image.width} x {image.height} pixels, more than the "
                        f"bound of {bound}: make it smaller, or raise max_pixels"
                    )
                yield image
    except FileNotFoundError as error:
        link = f": it is a link to '{os.readlink(path)}'" if os.path.islink(path) else ""
        raise InputError(f"photo '{path}' does not exist{link}") from error
    except InputError:
        raise
    except Exception as error:  # Pillow lets struct, zlib, index and other errors through
        plain = isinstance(error, OSError | ValueError | SyntaxError)
        text = str(error) if plain else repr(error)
        raise InputError(
            f"photo '{path}' cannot be decoded: {text}; copy or convert it again"
        ) from error


def load_photo(
    path: str | os.PathLike[str], upright: bool = True, max_pixels: int | None = None
) -> Tensor:
    r"""Read a JPEG or PNG as RGB :math:`(3, H, W)`, uint8.

    Grey, palette and transparent images are converted. Those with 16 bits a pixel, as microscopes
    and X-ray detectors write them, are divided by a power of two, the same for all of a photo: the
    least for which all but a thousandth of its values fit in 8 bits. Those above, such as of hot
    pixels, become white.

    Args:
        path (str or PathLike): The file.
        upright (bool): Turn the photo as its EXIF orientation says; all else in its EXIF data is
            not looked at. (default: :obj:`True`)
        max_pixels (int, optional): Bound on its width times its height, by default 178,956,970.

    Raises:
        InputError: If the file is missing, is too large or cannot be decoded.
    """
    with opened(path, max_pixels) as image:
        pixels = as_rgb(image)
        turn = _TURN.get(orientation(image)) if upright else None
        return F.pil_to_tensor(pixels if turn is None else pixels.transpose(turn))


def load_thumbnail(
    path: str | os.PathLike[str],
    side: int,
    upright: bool = True,
    max_pixels: int | None = None,
) -> Image.Image:
    """Read a photo no larger than a square; a large JPEG is not decoded at its full size.

    Args:
        path (str or PathLike): The file.
        side (int): Longer side in pixels; a smaller photo stays as it is.
        upright, max_pixels: See :func:`load_photo`.

    Raises:
        InputError: If the file is missing, is too large or cannot be decoded.
    """
    with opened(path, max_pixels) as image:
        image.draft(None, (side, side))
        pixels = as_rgb(image)
        turn = _TURN.get(orientation(image)) if upright else None
        pixels = pixels if turn is None else pixels.transpose(turn)
        pixels.thumbnail((side, side), Image.Resampling.BILINEAR)
        return pixels.copy()


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Height and width of a photo of this width and height, turned upright."""
    width, height = size
    return (width, height) if orientation >= 5 else (height, width)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened photo, 1 to 8; 1 where there is none that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # of EXIF data that are damaged, which says nothing of the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def as_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened photo and convert it.

    Raises:
        ValueError: If it has 16 bits a colour of which next to nothing is left in 8.
    """
    deep = image.mode != "I;16" and any(
        ";16" in str(tile.args) for tile in getattr(image, "tile", ())
    )
    image.load()
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's conversion cuts all above 255 off
        values = np.asarray(image)
        bits = int(np.quantile(values, 0.999, method="higher")).bit_length()
        image = Image.fromarray((values >> max(0, bits - 8)).clip(0, 255).astype(np.uint8))
    image = image if image.mode == "RGB" else image.convert("RGB")
    if deep and int(np.asarray(image).max()) < 16:
        raise ValueError("its colours use 12 of 16 bits or fewer; use 8 bits a colour")
    return image


def count_pixels(path: Path, max_pixels: int | None = None) -> int:
    """Pixels of a photo from its header; 0 where it cannot be read, as its decoding will say."""
    try:
        with opened(path, max_pixels) as image:
            return image.width * image.height
    except InputError:
        return 0


def photo_suffix(head: bytes) -> str | None:
    """The usual ending of a photo's file by its first 12 bytes; :obj:`None` of other files."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    return ".jpg" if head.startswith(b"\xff\xd8\xff") else None


def _kind(head: bytes) -> str:
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp":
        return "it is HEIC or AVIF"
    names = (name for start, name in _FORMATS.items() if head.startswith(start))
    name = next(names, None)
    return "it is no image of a known kind" if name is None else f"it is {name}"
