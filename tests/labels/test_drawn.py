import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import IGNORE
from pgnn_geo.labels.drawn import with_strokes, within_boxes


def test_strokes_take_the_place_of_labels():
    labels = torch.tensor([[0, 1, 2], [255, 1, 0]], dtype=torch.uint8)
    drawn = torch.tensor([[255, 0, 255], [1, 255, 2]], dtype=torch.uint8)
    result = with_strokes(labels, drawn)
    assert result.tolist() == [[0, 0, 2], [1, 1, 2]] and result.dtype == torch.uint8
    with pytest.raises(InputError, match="want one shape"):
        with_strokes(labels, drawn[:1])


def pixel_by_pixel(labels, boxes, classes):
    """The definition, one pixel at a time; a pixel is inside where the areas overlap."""
    result = labels.clone()
    for y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        here = [
            i
            for i, (x1, y1, x2, y2) in enumerate(boxes.tolist())
            if x1 < x + 1 and x < x2 and y1 < y + 1 and y < y2
        ]
        label = int(labels[y, x])
        if not here:
            result[y, x] = 0
        elif label not in {int(classes[i]) for i in here}:
            missed = False
            for i in here:
                x1, y1, x2, y2 = boxes[i].tolist()
                own = labels[int(y1) : -int(-y2 // 1), int(x1) : -int(-x2 // 1)]
                missed |= not (own == classes[i]).any()
            if missed or label != 0:
                result[y, x] = IGNORE
    return result


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_labels_stay_within_the_boxes_of_their_class(data):
    height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    values = st.sampled_from([0, 0, 1, 2, IGNORE])
    labels = torch.tensor(
        [[data.draw(values) for _ in range(width)] for _ in range(height)], dtype=torch.uint8
    )
    boxes, classes = [], []
    for _ in range(data.draw(st.integers(0, 3))):
        x, y = data.draw(st.integers(0, 2 * width - 1)) / 2, data.draw(st.integers(0, 9)) / 2
        boxes.append([x, y, x + data.draw(st.integers(1, 9)) / 2, y + 1.5])
        classes.append(data.draw(st.integers(1, 2)))
    given_boxes = torch.tensor(boxes).view(-1, 4), torch.tensor(classes, dtype=torch.long)
    result = within_boxes(labels, *given_boxes)
    assert torch.equal(result, pixel_by_pixel(labels, *given_boxes))
    assert result.dtype == torch.uint8
    kept = (result != 0) & (result != IGNORE)
    assert torch.equal(result[kept], labels[kept])


def test_a_box_without_its_object_is_an_open_question():
    labels = torch.zeros(4, 6, dtype=torch.uint8)
    labels[1, 1] = 2
    boxes = torch.tensor([[0.0, 0.0, 3.0, 3.0], [4.0, 0.0, 6.0, 2.0]])
    result = within_boxes(labels, boxes, torch.tensor([2, 1]))
    assert result[1, 1] == 2 and (result[:2, 4:] == IGNORE).all()
    assert (result != 0).sum() == 1 + 4
    with pytest.raises(InputError, match="one of each class"):
        within_boxes(labels, boxes, torch.tensor([1]))
