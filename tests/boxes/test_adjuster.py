import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from pgnn_geo.boxes.adjuster import (
    BoxAdjuster,
    check_shared_stages,
    decode_boxes,
    encode_boxes,
    jitter_boxes,
)
from pgnn_geo.boxes.image_boxes import ImageBoxes
from pgnn_geo.errors import InputError
from pgnn_geo.nn import build_backbone

corner, side = st.floats(-1000, 1000), st.floats(0.5, 1000)
box = st.tuples(corner, corner, side, side).map(
    lambda values: [values[0], values[1], values[0] + values[2], values[1] + values[3]]
)


@given(st.lists(st.tuples(box, box), min_size=1, max_size=5))
def test_offsets_invert_exactly(pairs):
    boxes, targets = torch.tensor(pairs, dtype=torch.double).unbind(1)
    offsets = encode_boxes(boxes, targets)
    torch.testing.assert_close(decode_boxes(boxes, offsets), targets, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(
        encode_boxes(boxes, decode_boxes(boxes, offsets)), offsets, rtol=1e-9, atol=1e-9
    )


def test_offsets_are_those_of_torchvision():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 9.0, 6.0]])
    targets = torch.tensor([[5.0, 0.0, 25.0, 10.0], [0.0, 0.0, 40.0, 40.0]])
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    expected = coder.encode_single(targets, boxes)
    torch.testing.assert_close(encode_boxes(boxes, targets), expected)
    torch.testing.assert_close(decode_boxes(boxes, expected), coder.decode_single(expected, boxes))
    by_hand = [1.0, -0.25, torch.tensor(2.0).log().item(), torch.tensor(0.5).log().item()]
    assert encode_boxes(boxes, targets)[0].tolist() == pytest.approx(by_hand)


def test_offsets_do_not_see_where_the_box_is_or_how_the_photo_is_stretched():
    boxes, targets = torch.rand(2, 8, 4, dtype=torch.double).sort(-1).values
    boxes[:, 2:] += 1
    targets[:, 2:] += 1
    stretch = torch.tensor([3.0, 0.5, 3.0, 0.5])
    moved = [each * stretch + 7 for each in (boxes, targets)]
    torch.testing.assert_close(encode_boxes(*moved), encode_boxes(boxes, targets))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([0.3, 0.5, 0.8]))
def test_drawn_boxes_overlap_what_they_were_drawn_around(seed, min_iou):
    torch.manual_seed(seed)
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0], [30.0, 5.0, 90.0, 60.0]])
    drawn, targets = jitter_boxes(boxes, 300, min_iou)
    assert torch.equal(targets, boxes.repeat_interleave(300, 0))
    overlap = torch.cat(
        [box_iou(drawn[:300], boxes[:1])[:, 0], box_iou(drawn[300:], boxes[1:])[:, 0]]
    )
    assert (overlap >= min_iou).all() and overlap.std() > 0.01


def tiny(**options):
    torch.manual_seed(0)
    options = {"pool_size": 2, "hidden_channels": 8, "output_stride": 8, **options}
    return BoxAdjuster("vgg_tiny", weights=None, **{"freeze_stages": 0, **options}).eval()


def some_boxes():
    boxes = torch.tensor([[0.0, 0.0, 20.0, 30.0], [40.0, 50.0, 64.0, 64.0]])
    return ImageBoxes(boxes, torch.tensor([2, 1]), torch.tensor([0.5, 0.25]))


def test_a_new_adjuster_leaves_boxes_where_they_are():
    model = tiny()
    assert model(torch.rand(1, 3, 64, 64), [some_boxes().boxes]).tolist() == [[0.0] * 4] * 2
    features = torch.rand(1, 128, 8, 8)
    (same,) = model.adjust(features, [some_boxes()], (64, 64))
    torch.testing.assert_close(same.boxes, some_boxes().boxes)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_boxes_move_by_the_offsets_and_stay_inside(steps):
    model = tiny()
    model.lin_offset.bias.data = torch.tensor([0.25, 0.0, 0.0, 0.0])
    features = torch.rand(2, 128, 8, 8)
    moved, none = model.adjust(features, [some_boxes(), ImageBoxes.empty()], (64, 64), steps)
    assert moved.boxes[0].tolist() == pytest.approx([5.0 * steps, 0.0, 20.0 + 5.0 * steps, 30.0])
    assert moved.boxes[1, 2] == 64 and len(none) == 0
    assert moved.classes.tolist() == [2, 1] and moved.scores.tolist() == [0.5, 0.25]
    model.lin_offset.bias.data = torch.tensor([1e9, 1e9, -1e9, 1e9])
    (gone,) = model.adjust(features[:1], [some_boxes()], (64, 64), steps=9)
    width = gone.boxes[:, 2:] - gone.boxes[:, :2]
    assert (gone.boxes >= 0).all() and (gone.boxes <= 64).all() and (width >= 1).all()
    assert model.adjust(features[:1], [ImageBoxes.empty()], (64, 64))[0].boxes.shape == (0, 4)


def test_frozen_stages_must_be_shared():
    torch.manual_seed(0)
    first = build_backbone("vgg_tiny", None, 8, freeze_stages=2)
    second = build_backbone("vgg_tiny", None, 8, freeze_stages=2)
    with pytest.raises(InputError, match="frozen stages differ"):
        check_shared_stages(first, second)
    second.load_state_dict(first.state_dict())
    check_shared_stages(first, second)
    second.stages[3][1].weight.data += 1  # a trained stage
    check_shared_stages(first, second)
    with pytest.raises(InputError, match="freeze_stages"):
        check_shared_stages(first, second.freeze(1))


def test_a_model_of_the_same_configuration():
    model = tiny(pool="align")
    again = BoxAdjuster.from_config(model.config)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and again.pool == "align"
