"""Sheets of pictures, whatever the shape of the photos and the number of classes."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from pgnn_geo.io.masks import voc_palette
from pgnn_geo.viz import overlay, overlay_sheet

TITLES = ["photo", "CAM", "P-GNN", "truth"]


def row(height, width, label=1):
    photo = torch.full((3, height, width), 128, dtype=torch.uint8)
    painted = overlay(photo, torch.full((height, width), label))
    return [photo, painted, painted, painted]


def opened(path):
    with Image.open(path) as sheet:
        return sheet.convert("RGB")


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (1, 65_000), (40, 30)])
def test_a_sheet_is_bounded_whatever_its_photos_are(tmp_path, size):
    sheet = opened(overlay_sheet(tmp_path / "s.png", [row(*size), row(375, 500)], TITLES))
    assert sheet.width <= 4 * (4 * 160 + 4) and sheet.height == 18 + 2 * 164
    assert np.asarray(sheet)[18 + 164 :, 0].any()


def test_ordinary_photos_keep_their_places(tmp_path):
    sheet = opened(overlay_sheet(tmp_path / "s.jpg", [row(375, 500), row(375, 500, 2)], TITLES))
    assert sheet.size == (4 * 217, 18 + 2 * 164)  # 500 x 375 is 213 x 160 there


@pytest.mark.parametrize("count", [1, 6, 20, 90])
@pytest.mark.parametrize("name", ["class {}", "the long name of class number {}", "{}" + "W" * 300])
def test_the_legend_names_every_class_within_the_sheet(tmp_path, count, name):
    classes = [name.format(k) for k in range(1, count + 1)]
    sheet = opened(overlay_sheet(tmp_path / "s.png", [row(40, 30)], TITLES, classes))
    legend = np.asarray(sheet)[18 + 164 :]
    # A sheet of long names has millions of pixels: one number for each colour, white left out.
    colours = np.asarray(sheet.convert("RGBA")).view(np.uint32)[18 + 164 :, :, 0]
    ink = np.argwhere(colours != 0xFFFFFFFF)
    inked = colours[*ink.T]
    rows = {}
    for label in range(1, count + 1):
        colour = np.array([*voc_palette()[label], 255], np.uint8).view(np.uint32)[0]
        corners = map(tuple, ink[inked == colour])  # letters have some of these greys
        squares = ((y, x, colours[y : y + 13, x : x + 13]) for y, x in corners)
        y, x = next((y, x) for y, x, square in squares if (square == colour).sum() == 169)
        rows.setdefault(y, []).append(x)
    assert all(columns == sorted(columns) for columns in rows.values())
    # Nothing is cut: a margin is left white on all sides.
    content = ImageChops.invert(Image.fromarray(np.ascontiguousarray(legend))).getbbox()
    assert content[2] <= sheet.width - 4 and content[3] < len(legend)
