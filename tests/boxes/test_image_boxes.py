import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import nms
from torchvision.transforms.v2 import functional as F

from pgnn_geo.boxes import ImageBoxes, boxes_to_photo, boxes_to_view, check_boxes
from pgnn_geo.datasets import EvalTransform, SquareTransform, TrainTransform
from pgnn_geo.errors import InputError

WIDTH, HEIGHT = 60, 40


def image_boxes(*rows: list[float]) -> ImageBoxes:
    """Boxes of class 1 with falling scores."""
    count = len(rows)
    labels = torch.ones(count, dtype=torch.long)
    return ImageBoxes(
        torch.tensor(rows).float().view(-1, 4), labels, torch.linspace(0.9, 0.1, count)
    )


def random_boxes(seed: int, count: int = 8, classes: int = 3) -> ImageBoxes:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([WIDTH, HEIGHT])
    start = torch.rand(count, 2, generator=generator) * (size - 8)
    extent = 2 + torch.rand(count, 2, generator=generator) * (size - start - 2)
    return ImageBoxes(
        torch.cat([start, start + extent], dim=1),
        torch.randint(1, classes + 1, (count,), generator=generator),
        torch.rand(count, generator=generator),
    )


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    left=st.integers(-30, 30),
    top=st.integers(-30, 30),
    extent=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    flip=st.booleans(),
)
def test_there_and_back(
    seed: int,
    left: int,
    top: int,
    extent: tuple[int, int],
    size: tuple[int, int],
    flip: bool,
) -> None:
    crop = (left, top, left + extent[0], top + extent[1])
    boxes = random_boxes(seed).boxes
    moved = boxes_to_view(boxes, crop, size, flip)
    assert (moved[:, 2:] > moved[:, :2]).all()
    torch.testing.assert_close(boxes_to_photo(moved, crop, size, flip), boxes, atol=1e-3, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), flip=st.booleans(), side=st.integers(20, 40))
def test_shown_is_what_torchvision_says(seed: int, flip: bool, side: int) -> None:
    found = random_boxes(seed)
    left, top = seed % (WIDTH - side + 1), seed % (HEIGHT - side + 1)
    boxes = tv_tensors.BoundingBoxes(found.boxes, format="XYXY", canvas_size=(HEIGHT, WIDTH))
    expected = F.resize(F.crop(boxes, top, left, side, side), [64, 48])
    expected = (F.horizontal_flip(expected) if flip else expected).as_subclass(Tensor)
    seen = (expected[:, 2:] > expected[:, :2]).all(1)
    shown = found.shown((left, top, left + side, top + side), (64, 48), flip, min_visible=0)
    torch.testing.assert_close(shown.boxes, expected[seen], atol=1e-4, rtol=1e-4)
    assert torch.equal(shown.classes, found.classes[seen])
    assert torch.equal(shown.scores, found.scores[seen])


@pytest.mark.parametrize(
    "transform",
    [
        SquareTransform(96, flip=True),
        SquareTransform(32),
        EvalTransform(90, multiple=32),
        TrainTransform(96, (0.8, 1.5)),
    ],
)
def test_boxes_go_where_the_transforms_put_the_object(transform: TrainTransform) -> None:
    torch.manual_seed(0)
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    mask[8:30, 15:44] = 1
    photo = {
        "image": tv_tensors.Image(torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)),
        "mask": tv_tensors.Mask(mask),
    }
    for _ in range(8):
        item = transform(photo)
        y, x = (item["mask"] == 1).nonzero(as_tuple=True)
        drawn = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]])
        height, width = item["mask"].shape
        found = image_boxes([15, 8, 44, 30]).shown(item["crop"], (height, width), item["flip"])
        assert (found.boxes - drawn).abs().max() <= 0.501  # half a pixel of rounding


def test_little_or_nothing_seen_is_dropped() -> None:
    boxes = image_boxes([0, 0, 10, 10], [4, 0, 24, 10], [30, 0, 40, 10], [20, 20, 30, 30])
    shown = boxes.shown((0, 0, 8, 40), (40, 8))  # sees 80 %, 20 %, none, none
    assert shown.boxes.tolist() == [[0, 0, 8, 10]]
    every = boxes.shown((0, 0, 8, 40), (40, 8), min_visible=0)
    assert every.boxes.tolist() == [[0, 0, 8, 10], [4, 0, 8, 10]]
    with pytest.raises(InputError, match="crop"):
        boxes.shown((8, 0, 8, 40), (40, 8))


@pytest.mark.parametrize("seed", range(5))
def test_nms_is_torchvisions_class_by_class(seed: int) -> None:
    boxes = random_boxes(seed, count=40)
    kept = boxes.nms(0.4)
    rows = []
    for label in (1, 2, 3):
        own = (boxes.classes == label).nonzero()[:, 0]
        rows.append(own[nms(boxes.boxes[own], boxes.scores[own], 0.4)])
    expected = boxes.pick(torch.cat(rows))
    expected = expected.top(len(expected))
    assert len(kept) < len(boxes)
    for name in ("boxes", "classes", "scores"):
        assert torch.equal(getattr(kept, name), getattr(expected, name))


def test_top_and_cat() -> None:
    boxes = ImageBoxes(
        torch.arange(16.0).view(4, 4), torch.tensor([1, 2, 3, 4]), torch.tensor([0.2, 0.5, 0.5, 1])
    )
    assert boxes.top(3).classes.tolist() == [4, 2, 3]
    assert len(boxes.top(9)) == 4 and len(boxes.top(0)) == 0
    both = ImageBoxes.cat([boxes.top(1), ImageBoxes.empty(), boxes.pick(slice(0, 2))])
    assert both.classes.tolist() == [4, 1, 2] and "classes=[1, 2, 4]" in repr(both)
    with pytest.raises(InputError, match="k=-1"):
        boxes.top(-1)


def test_no_box_survives_everything() -> None:
    empty = ImageBoxes.empty()
    assert len(ImageBoxes.cat([])) == len(empty.top(5)) == len(empty.nms()) == 0
    assert len(empty.shown((0, 0, 4, 4), (2, 2), flip=True)) == 0
    assert boxes_to_photo(empty.boxes, (0, 0, 4, 4), (2, 2), True).shape == (0, 4)
    check_boxes(empty, [], {}, 3, "nothing")


@pytest.mark.parametrize("name", ["boxes", "classes", "scores"])
def test_wrong_types_are_told(name: str) -> None:
    values = {"boxes": torch.zeros(2, 4), "classes": torch.ones(2).long(), "scores": torch.ones(2)}
    with pytest.raises(InputError, match=f"{name}: got"):
        ImageBoxes(**{**values, name: values[name].double()})
    with pytest.raises(InputError, match="scores: got"):
        ImageBoxes(**{**values, "scores": torch.ones(3)})


def test_all_bad_boxes_in_one_error() -> None:
    rows = [
        [0, 0, 60, 40],  # good
        [-0.4, 0, 60.4, 40.4],  # good: files round
        [5, 5, 5, 9],
        [50, 0, 61, 40],
        [70, 0, 60.3, 40],
        [float("nan"), 0, 3, 3],
        [0, 0, 9, 9],
        [0, 0, 9, 9],
        [0, 0, 9, 9],
        [-0.4, 0, -0.1, 9],  # within rounding of the photo, but not in it
    ]
    boxes = ImageBoxes(
        torch.tensor(rows),
        torch.tensor([1, 3, 1, 1, 1, 1, 0, 1, 1, 1]),
        torch.tensor([0, 1, 0.5, 0.5, 0.5, 0.5, 0.5, float("nan"), 1.5, 0.5]),
    )
    names = ["a"] * 10
    names[6] = "z"
    with pytest.raises(InputError) as error:
        check_boxes(boxes, names, {"a": (HEIGHT, WIDTH)}, 3, "test.json")
    lines = str(error.value).splitlines()
    assert lines[0] == "test.json: 8 of 10 boxes cannot be used"
    kinds = {line.split(":")[0].strip(): line for line in lines[1:]}
    counts = {kind: line.rsplit("(", 1)[1] for kind, line in kinds.items()}
    assert counts == {
        "of images that the data set does not have": "1 in all)",
        "of classes other than 1..3": "1 in all)",
        "with coordinates that are not numbers": "1 in all)",
        "without area": "2 in all)",
        "outside the photo": "2 in all)",
        "with a score that is not a number in [0, 1]": "2 in all)",
    }
    assert "[50.0, 0.0, 61.0, 40.0] of image 'a'" in kinds["outside the photo"]
    with pytest.raises(InputError, match="2 boxes but 1"):
        check_boxes(boxes.pick(slice(0, 2)), ["a"], {}, 3, "x")
