from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from pgnn_geo.datasets import EvalTransform, SquareTransform, TrainTransform
from pgnn_geo.datasets.transforms import MEAN_RGB
from pgnn_geo.errors import InputError

sizes = st.tuples(st.integers(20, 90), st.integers(20, 90))


def make_item(height: int, width: int) -> dict[str, Any]:
    """Every mask pixel and the image's red and green say where it came from."""
    y = torch.arange(height)[:, None].expand(height, width)
    x = torch.arange(width)[None].expand(height, width)
    return {
        "image": tv_tensors.Image(torch.stack([x * 2, y * 2, x * 0]).to(torch.uint8)),
        "mask": tv_tensors.Mask(((x * 7 + y * 13) % 251).to(torch.uint8)),
        "tags": torch.ones(2),
        "image_id": "a",
        "index": 0,
        "crop": torch.tensor([0.0, 0.0, width, height]),
        "flip": False,
        "size": torch.tensor([height, width]),
    }


def source_of(item: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The photo's coordinates of every output pixel's centre, by the documented equation."""
    height, width = item["image"].shape[-2:]
    x1, y1, x2, y2 = item["crop"].double()
    u, v = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    u = width - u if item["flip"] else u
    x, y = x1 + u / width * (x2 - x1), y1 + v / height * (y2 - y1)
    return x[None].expand(height, width), y[:, None].expand(height, width)


def assert_aligned(old: dict[str, Any], new: dict[str, Any]) -> None:
    height, width = old["image"].shape[-2:]
    x, y = source_of(new)
    inside = (x > 0) & (x < width) & (y > 0) & (y < height)
    # A tie between two pixels, and the border itself, may round either way.
    clear = ((x - x.round()).abs() > 1e-4) & ((y - y.round()).abs() > 1e-4)
    rows, columns = y.long().clamp(0, height - 1), x.long().clamp(0, width - 1)
    expected = torch.where(inside, torch.Tensor(old["mask"])[rows, columns].long(), 255)
    assert torch.equal(new["mask"][clear].long(), expected[clear])
    # Away from borders, a resized ramp is the ramp: the image's colours are the coordinates.
    ratio = float((new["crop"][2] - new["crop"][0]) / new["image"].shape[-1])
    margin = 2 * max(1.0, ratio) + 1
    deep = (x > margin) & (x < width - margin) & (y > margin) & (y < height - margin)
    image = new["image"] * 255
    # At the border of the crop the filter is cut off, which moves its mean by 0.132 of its radius.
    x1, y1, x2, y2 = new["crop"]
    cut = (x - x1 < ratio) | (x2 - x < ratio) | (y - y1 < ratio) | (y2 - y < ratio)
    limit = torch.where(cut, max(1.6, 1 + 0.27 * ratio), 1.6)  # uint8 rounding of steps of two
    for channel, place in ((0, x), (1, y)):
        error = (image[channel] - 2 * (place - 0.5)).abs()
        assert (error < limit)[deep].all()
    outside = (x < -margin) | (x > width + margin) | (y < -margin) | (y > height + margin)
    padding = torch.tensor(MEAN_RGB)[:, None]
    assert ((new["image"][:, outside] - padding).abs() < 0.01).all()


def assert_contract(new: dict[str, Any], size: tuple[int, int]) -> None:
    assert new["image"].shape == (3, *size) and new["mask"].shape == size
    assert new["image"].dtype == torch.float and new["mask"].dtype == torch.uint8
    assert isinstance(new["image"], tv_tensors.Image) and isinstance(new["mask"], tv_tensors.Mask)
    assert 0 <= new["image"].min() and new["image"].max() <= 1
    assert new["crop"].shape == (4,) and isinstance(new["flip"], bool)


@settings(deadline=None, max_examples=25)
@given(
    sizes,
    st.integers(8, 80),
    st.sampled_from([(1.0, 1.7), (0.4, 0.8), (2.0, 3.0)]),
    st.integers(0, 99),
)
@example((28, 77), 9, (1.0, 1.7), 0)  # a crop that is much smaller than the photo
def test_train_transform_is_aligned(
    size: tuple[int, int], side: int, scale: tuple[float, float], seed: int
) -> None:
    torch.manual_seed(seed)
    old = make_item(*size)
    kept = {name: getattr(value, "clone", lambda v=value: v)() for name, value in old.items()}
    new = TrainTransform(side, scale)(old)
    assert_contract(new, (side, side))
    assert_aligned(old, new)
    for name, value in kept.items():  # the item that came in is as it was
        assert torch.equal(value, old[name]) if isinstance(value, Tensor) else value == old[name]
    x1, y1, x2, y2 = new["crop"].tolist()
    assert x2 - x1 == y2 - y1
    assert scale[0] * 0.95 <= max(size) / (x2 - x1) <= scale[1] * 1.06
    assert new["tags"] is old["tags"]


def test_train_transform_draws_evenly() -> None:
    torch.manual_seed(0)
    old, transform = make_item(40, 60), TrainTransform(32, (1.5, 1.5))
    new = [transform(old) for _ in range(400)]
    assert 150 < sum(item["flip"] for item in new) < 250
    offsets = {float(item["crop"][0]) for item in new}
    assert offsets == set(range(21))  # a window of 40 in 60: all places, none outside
    assert {float(item["crop"][1]) for item in new} == {0.0}
    assert not any(TrainTransform(32, flip=False)(old)["flip"] for _ in range(30))


def test_train_transform_follows_the_seed_and_jitters_colours_only() -> None:
    old, shown = make_item(40, 60), []
    for jitter in (False, False, True):
        torch.manual_seed(3)
        shown.append(TrainTransform(32, color_jitter=jitter)(old))
    assert torch.equal(shown[0]["image"], shown[1]["image"])
    assert not torch.equal(shown[0]["image"], shown[2]["image"])
    assert torch.equal(shown[0]["mask"], shown[2]["mask"])
    assert torch.equal(shown[0]["crop"], shown[2]["crop"])


@settings(deadline=None, max_examples=25)
@given(sizes, st.one_of(st.none(), st.integers(8, 120)), st.sampled_from([1, 8, 32]), st.booleans())
def test_eval_transform_is_aligned(
    size: tuple[int, int], side: int | None, multiple: int, flip: bool
) -> None:
    old = make_item(*size)
    new = EvalTransform(side, multiple, flip)(old)
    height, width = new["image"].shape[-2:]
    assert_contract(new, (height, width))
    assert height % multiple == width % multiple == 0
    assert_aligned(old, new)
    if multiple == 1:
        assert max(height, width) == (side or max(size))
        assert new["crop"].tolist() == [0, 0, size[1], size[0]]
    if side is None:
        mask = old["mask"].flip(-1) if flip else old["mask"]
        assert torch.equal(new["mask"][: size[0], : size[1]], mask)


@settings(deadline=None, max_examples=25)
@given(sizes, st.integers(8, 80), st.booleans())
def test_square_transform_is_aligned(size: tuple[int, int], side: int, flip: bool) -> None:
    old = make_item(*size)
    new = SquareTransform(side, flip)(old)
    assert_contract(new, (side, side))
    assert_aligned(old, new)
    assert new["flip"] is flip and new["crop"].tolist() == [0, 0, size[1], size[0]]


def test_items_without_masks_and_bad_arguments() -> None:
    item = make_item(20, 30)
    del item["mask"]
    for transform in (TrainTransform(16), EvalTransform(16, 8), SquareTransform(16)):
        assert "mask" not in transform(item)
    with pytest.raises(InputError, match="size: got 0"):
        SquareTransform(0)
    with pytest.raises(InputError, match="multiple: got 0"):
        EvalTransform(multiple=0)
    with pytest.raises(InputError, match="scale"):
        TrainTransform(scale=(2.0, 1.0))
