import torch

from pgnn_geo.boxes import ImageBoxes, draw_boxes
from pgnn_geo.io.masks import voc_palette

BOXES = ImageBoxes(
    torch.tensor([[10.0, 20, 60, 70], [30, 5, 90, 50]]),
    torch.tensor([3, 1]),
    torch.tensor([0.9, 0.4]),
)


def test_outlines_are_where_the_boxes_are() -> None:
    photo = torch.full((3, 80, 100), 77, dtype=torch.uint8)
    drawn = draw_boxes(photo, BOXES)
    assert drawn.shape == photo.shape and drawn.dtype == torch.uint8
    assert (photo == 77).all()  # the photo itself is as it was
    color = {label: torch.from_numpy(voc_palette()[label]) for label in (1, 3)}
    for x, y in ((10, 20), (59, 20), (10, 69), (59, 69), (59, 40)):  # the best is on top
        assert torch.equal(drawn[:, y, x], color[3])
    assert torch.equal(drawn[:, 5, 30], color[1]) and torch.equal(drawn[:, 49, 89], color[1])
    changed = (drawn != 77).any(0)
    assert not changed[21:69, 11:30].any() and not changed[71:].any()


def test_names_and_nothing_to_draw() -> None:
    photo = torch.full((3, 80, 100), 77, dtype=torch.uint8)
    named = draw_boxes(photo, BOXES, ("cat", "cow", "dog"))
    assert (named != draw_boxes(photo, BOXES, ("cat", "cow", "dog"), scores=False)).any()
    assert (named[:, 22:30, 12:30] != 77).any()
    assert torch.equal(draw_boxes(photo, ImageBoxes.empty(), ("cat",)), photo)
