import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnn_geo.errors import InputError
from pgnn_geo.graph.geometry import box_pixels, covered, patch_class


def test_patch_class_by_hand():
    maps = torch.zeros(2, 3, 4, 4)
    maps[0, 0, :2, :2] = 1.0
    maps[0, 2, 2:, 2:] = 0.9
    maps[0, 1, 2:, 2:] = 0.8
    maps[0, 1, 0, 2] = 1.0  # a quarter of its patch
    maps[1, 1] = 0.5
    assert patch_class(maps, 2).tolist() == [1, 0, 0, 3, 2, 2, 2, 2]
    assert patch_class(maps, 2, threshold=0.2).tolist()[:4] == [1, 2, 0, 3]
    assert patch_class(maps, 1).tolist() == [0, 2] and patch_class(maps, 1).dtype == torch.long


@pytest.mark.parametrize("wrong", [{"grid": 0}, {"grid": 2, "threshold": -0.1}])
def test_patch_class_refuses(wrong):
    with pytest.raises(InputError, match="want 1 or more, and 0 or more"):
        patch_class(torch.zeros(1, 1, 4, 4), **wrong)


@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(0, 3), min_size=1, max_size=3))
@settings(deadline=None, max_examples=25)
def test_covered_pixels_are_those_that_boxes_overlap(h, w, counts):
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    boxes = torch.rand(len(image), 2, 2).sort(dim=1).values * torch.tensor([w, h])
    boxes = (boxes.flatten(1) * 2).round() / 2  # some end on the border of a pixel
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    image = image[: len(boxes)]
    expected = torch.zeros(len(counts), h, w, dtype=torch.bool)
    for i, (x1, y1, x2, y2) in zip(image.tolist(), boxes.tolist(), strict=True):
        for y in range(h):
            for x in range(w):
                expected[i, y, x] |= x1 < x + 1 and x < x2 and y1 < y + 1 and y < y2
    found = covered(boxes, image, len(counts), h, w)
    assert torch.equal(found, expected)
    pixel = box_pixels(boxes, image, h, w)[1]
    assert set(pixel.tolist()) == set(expected.flatten().nonzero().flatten().tolist())
