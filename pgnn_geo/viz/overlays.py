"""Overlay sheets: photos with their label images side by side."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from pgnn_geo.io.files import atomic_write
from pgnn_geo.io.masks import voc_palette

_TITLE = 18  # pixels above each column
_LEGEND = 20  # height of a line of it
_WIDEST = 4  # times its height may a picture be wide; wider ones are lower than their row


def overlay(image: Tensor, label: Tensor, opacity: float = 0.55) -> Tensor:
    """Paint the labels of an image over it in VOC's colours; background stays as it is.

    Args:
        image (torch.Tensor): RGB :obj:`[3, H, W]`, uint8.
        label (torch.Tensor): Labels :obj:`[H, W]`; 255 is painted white.
        opacity (float): Of the colours, in :math:`[0, 1]`. (default: :obj:`0.55`)
    """
    values = [int(v) for v in label.unique() if v != 0]
    if not values:
        return image
    masks = torch.stack([label == value for value in values])
    colors = [tuple(int(c) for c in voc_palette()[value]) for value in values]
    return draw_segmentation_masks(image, masks, alpha=opacity, colors=colors)


def overlay_sheet(
    path: str | os.PathLike[str],
    rows: Sequence[Sequence[Tensor]],
    titles: Sequence[str],
    classes: Sequence[str] = (),
    height: int = 160,
) -> Path:
    """Write a contact sheet: one row per photo, one titled column per picture of it.

    Args:
        path (str or PathLike): The PNG or JPEG file, written atomically.
        rows (sequence of sequences of torch.Tensor): Pictures :obj:`[3, H, W]`, uint8; the
            pictures of one row share their size.
        titles (sequence of str): Title of each column.
        classes (sequence of str): Names of labels 1..K for the legend below.
        height (int): Height of a row in pixels. A picture that would be wider than four times that
            is lower than its row. (default: :obj:`160`)
    """
    pictures = [[_scaled(picture, height) for picture in row] for row in rows]
    font = ImageFont.load_default(size=12)
    entries = [28 + math.ceil(font.getlength(name)) for name in classes]
    width = max(picture.width for row in pictures for picture in row)
    width = max(width, *(4 + math.ceil(font.getlength(title)) for title in titles))
    total = max(len(titles) * (width + 4), 4 + max(entries, default=0))
    places = _wrapped(entries, total)
    top = _TITLE + len(rows) * (height + 4)
    lines = places[-1][1] + 1 if places else 0
    sheet = Image.new("RGB", (total, top + lines * _LEGEND), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * (width + 4) + 4, 2), title, fill="black", font=font)
        for row, images in enumerate(pictures):
            sheet.paste(images[column], (column * (width + 4), _TITLE + row * (height + 4)))
    for label, (name, (x, line)) in enumerate(zip(classes, places, strict=True), start=1):
        y = top + line * _LEGEND + 4
        color = tuple(int(c) for c in voc_palette()[label])
        draw.rectangle((x, y, x + 12, y + 12), fill=color)
        draw.text((x + 16, y - 1), name, fill="black", font=font)
    target = Path(path)
    with atomic_write(target) as handle:
        sheet.save(handle, format="JPEG" if target.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    return target


def _scaled(picture: Tensor, height: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy()))
    ratio = min(height / image.height, _WIDEST * height / image.width)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    return image.resize(size, Image.Resampling.BILINEAR)


def _wrapped(widths: Sequence[int], total: int) -> list[tuple[int, int]]:
    """Place of each entry of the legend: where it begins in its line, and the line."""
    places, x, line = [], 4, 0
    for width in widths:
        if x > 4 and x + width > total:
            x, line = 4, line + 1
        places.append((x, line))
        x += width
    return places
