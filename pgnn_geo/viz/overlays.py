"""Overlay sheets: photos with their label images side by side."""

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
_LEGEND = 20


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
        height (int): Height of a row in pixels. (default: :obj:`160`)
    """
    pictures = [[_scaled(picture, height) for picture in row] for row in rows]
    width = max(picture.width for row in pictures for picture in row)
    sheet = Image.new(
        "RGB",
        (
            len(titles) * (width + 4),
            _TITLE + len(rows) * (height + 4) + (_LEGEND if classes else 0),
        ),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for column, title in enumerate(titles):
        draw.text((column * (width + 4) + 4, 2), title, fill="black", font=font)
        for row, images in enumerate(pictures):
            sheet.paste(images[column], (column * (width + 4), _TITLE + row * (height + 4)))
    x = 4
    for label, name in enumerate(classes, start=1):
        top = sheet.height - _LEGEND + 4
        color = tuple(int(c) for c in voc_palette()[label])
        draw.rectangle((x, top, x + 12, top + 12), fill=color)
        draw.text((x + 16, top - 1), name, fill="black", font=font)
        x += 28 + int(draw.textlength(name, font=font))
    target = Path(path)
    with atomic_write(target) as handle:
        sheet.save(handle, format="JPEG" if target.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    return target


def _scaled(picture: Tensor, height: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy()))
    width = max(1, round(image.width * height / image.height))
    return image.resize((width, height), Image.Resampling.BILINEAR)
