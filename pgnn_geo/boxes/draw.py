"""Photos with boxes drawn on them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from pgnn_geo.boxes.image_boxes import ImageBoxes
from pgnn_geo.io.masks import voc_palette


def draw_boxes(
    image: Tensor, boxes: ImageBoxes, classes: Sequence[str] = (), scores: bool = True
) -> Tensor:
    """Draw boxes on a photo in VOC's colours, the highest score on top.

    Args:
        image (torch.Tensor): RGB :obj:`[3, H, W]`, uint8.
        boxes (ImageBoxes): In pixels of the photo.
        classes (sequence of str): Names of the classes 1..K to write at the boxes; nothing is
            written by default.
        scores (bool): Write scores beside the names. (default: :obj:`True`)
    """
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    draw, width = ImageDraw.Draw(picture), max(1, round(max(picture.size) / 200))
    font = ImageFont.load_default(size=max(10, max(picture.size) // 40))
    order = boxes.top(len(boxes))
    rows = zip(order.boxes.tolist(), order.classes.tolist(), order.scores.tolist(), strict=True)
    for (x1, y1, x2, y2), label, score in reversed(list(rows)):
        color = tuple(voc_palette()[label].tolist())
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=width)
        if classes:
            text = classes[label - 1] + (f" {score:.2f}" if scores else "")
            place = (x1 + width, y1 + width)
            draw.rectangle(draw.textbbox(place, text, font=font), fill=color)
            ink = "black" if sum(color) > 384 else "white"
            draw.text(place, text, fill=ink, font=font)
    return pil_to_tensor(picture)
