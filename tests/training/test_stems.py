from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgnn_geo.boxes import ImageBoxes, PhotoBoxes
from pgnn_geo.datasets import Shapes, TrainTransform
from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.labels import AttentionStore
from pgnn_geo.nn import build_backbone
from pgnn_geo.training.attention import AttentionTrainingConfig
from pgnn_geo.training.stems import (
    StemDataset,
    empty_store,
    graph_of,
    group_loader,
    photo_view,
    with_boxes,
)

CONFIG = AttentionTrainingConfig(size=32, groups_per_batch=2, workers=0, precision="32-true")
CROPS = replace(CONFIG, augment="crop")


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64)


@pytest.fixture(scope="module")
def ramps(shapes, tmp_path_factory) -> tuple[FeatureBank, FeatureBank]:
    """Stems that hold, for each photo, x and y of every position as fractions of the photo."""
    place = (torch.arange(16) + 0.5) / 16
    ramp = torch.stack([place.expand(16, 16), place[:, None].expand(16, 16)])
    rows, tmp_path = ramp.expand(len(shapes), -1, -1, -1), tmp_path_factory.mktemp("ramps")
    names = {"as-it-is": rows, "mirrored": rows.flip(-1)}
    return tuple(
        FeatureBank.build(tmp_path / f"{name}.npy", lambda first, x=x: [x], len(shapes), {})
        for name, x in names.items()
    )


def ramp_store(shapes, folder: Path) -> AttentionStore:
    """The same ramps in a store, as maps of the first two classes; every photo tagged with all."""
    sizes = torch.stack([shapes[i]["size"] for i in range(len(shapes))])
    tags = torch.ones(len(shapes), 5)
    store = AttentionStore(folder / "m", shapes.image_ids, sizes, tags, stride=1, dtype="float16")
    maps = torch.zeros(1, 5, 64, 64)
    place = (torch.arange(64) + 0.5) / 64
    maps[0, 0], maps[0, 1] = place.expand(64, 64), place[:, None].expand(64, 64)
    for row in range(len(shapes)):
        store.write([row], maps)
    return store


def test_the_window_in_the_photo_is_what_the_stem_shows(shapes, ramps, tmp_path):
    photos, store = StemDataset(shapes, ramps, window=0.6), ramp_store(shapes, tmp_path)
    torch.manual_seed(0)
    flips = set()
    for index in list(range(len(shapes))) * 3:
        item = photos[index]
        batch = {
            "index": torch.tensor([index]),
            "window": item["window"][None],
            "flip": torch.tensor([item["flip"]]),
        }
        maps = store.read(*photo_view(batch, store.sizes), size=item["stem"].shape[1:])
        torch.testing.assert_close(maps[0, :2], item["stem"], rtol=0, atol=5e-3)
        flips.add(item["flip"])
    assert flips == {True, False} and item["stem"].shape == (2, 10, 10)


class OneBox:
    """The same box in every photo, of its first tag."""

    ledger = SupervisionLedger()

    def __init__(self, shapes: Shapes, box: tuple[float, ...]) -> None:
        self.label = dict(zip(shapes.image_ids, shapes.tags.argmax(dim=1) + 1, strict=True))
        self.box = torch.tensor([box]).float()

    def __call__(self, image_id: str) -> ImageBoxes:
        return ImageBoxes(self.box, self.label[image_id].view(1), torch.ones(1))


def at(ramp: Tensor, u: float, v: float) -> Tensor:
    """The two values of a ramp [2, h, w] at a corner, from positions' centres to its borders."""
    h, w = ramp.shape[1:]
    step = ramp[0, 0, 1] - ramp[0, 0, 0], ramp[1, 1, 0] - ramp[1, 0, 0]
    assert 0 <= u <= w and 0 <= v <= h
    return torch.stack([ramp[0, 0, 0] + (u - 0.5) * step[0], ramp[1, 0, 0] + (v - 0.5) * step[1]])


def check_content(ramp: Tensor, box: Tensor, shown: Tensor, crop: Tensor, stride: int) -> None:
    """A box in feature pixels frames the ramp's part that it frames in the photo, in fractions.

    `ramp` [2, h, w] is what the network is shown, of which its feature map has every stride-th
    position.
    """
    wanted = torch.cat([torch.maximum(box[:2], crop[:2]), torch.minimum(box[2:], crop[2:])]) / 64
    x1, y1, x2, y2 = (shown * stride).tolist()
    corners = torch.cat([at(ramp, x1, y1), at(ramp, x2, y2)])
    found = torch.cat([torch.minimum(corners[:2], corners[2:]), corners[:2].maximum(corners[2:])])
    cell = stride * (crop[2:] - crop[:2]).max() / 64 / ramp.shape[2]
    assert (found - wanted).abs().max() < 0.1 * cell


BOX = st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(12, 24)] * 2)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), place=BOX, stride=st.sampled_from([1, 2]))
def test_boxes_frame_in_a_window_what_they_frame_in_the_photo(shapes, ramps, seed, place, stride):
    left, top, width, height = place
    boxes = PhotoBoxes(OneBox(shapes, (left, top, left + width, top + height)), shapes)
    photos = StemDataset(shapes, ramps, window=0.6)
    torch.manual_seed(seed)
    items = [photos[seed % 20], photos[(seed + 7) % 20]]
    batch = {
        **{name: torch.stack([i[name] for i in items]) for name in ("stem", "window", "tags")},
        **{name: torch.tensor([i[name] for i in items]) for name in ("index", "flip")},
    }
    batch["group"] = torch.zeros(2, dtype=torch.long)
    features = batch["stem"][:, :, ::stride, ::stride]
    found = with_boxes(batch, boxes, features)
    _, crops, _ = photo_view(batch, boxes.sizes)
    for own, label, item, crop in zip(
        found["boxes"], found["box_class"], items, crops, strict=True
    ):
        box = boxes.boxes[item["index"]].boxes[0]
        inside = (torch.minimum(box[2:], crop[2:]) - torch.maximum(box[:2], crop[:2])).clamp(min=0)
        seen = inside.prod() / (box[2:] - box[:2]).prod()
        if abs(seen - 0.25) > 1e-3:  # a quarter must be seen
            assert len(own) == len(label) == int(seen > 0.25)
        if len(own):
            check_content(item["stem"], box, own[0], crop, stride)
            assert label[0] == item["tags"].argmax() + 1
    assert set(graph_of(found)) == {"group", "boxes", "box_class"}


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), place=BOX)
def test_boxes_frame_in_a_crop_what_they_frame_in_the_photo(shapes, seed, place):
    left, top, width, height = place
    boxes = PhotoBoxes(OneBox(shapes, (left, top, left + width, top + height)), shapes)
    torch.manual_seed(seed)
    item = shapes.with_transform(TrainTransform(64, scale=(1.0, 1.7)))[seed % 20]
    batch = {"index": torch.tensor([item["index"]]), "flip": torch.tensor([item["flip"]])}
    batch |= {"crop": item["crop"][None], "group": torch.zeros(1, dtype=torch.long)}
    # What each pixel of the result shows, by the definition in pgnn_geo.datasets.transforms.
    (x1, y1, x2, y2), centre = item["crop"].tolist(), (torch.arange(64) + 0.5) / 64
    u = 1 - centre if item["flip"] else centre
    ramp = torch.stack(
        [(x1 + u * (x2 - x1)).expand(64, 64), (y1 + centre * (y2 - y1))[:, None].expand(64, 64)]
    )
    found = with_boxes(batch, boxes, torch.zeros(1, 1, 8, 8))
    if len(found["boxes"][0]):
        own = boxes.boxes[item["index"]].boxes[0]
        check_content(ramp / 64, own, found["boxes"][0][0], item["crop"], stride=8)


def test_a_batch_without_boxes_is_the_batch(shapes):
    batch = {"group": torch.zeros(2, dtype=torch.long), "stem": torch.zeros(2, 3, 4, 4)}
    assert with_boxes(batch, None, batch["stem"]) is batch and set(graph_of(batch)) == {"group"}


def test_the_crop_in_the_photo_is_what_the_image_shows(shapes, tmp_path):
    loader = group_loader(None, shapes, tmp_path, CROPS)
    sizes = torch.stack([shapes[i]["size"] for i in range(len(shapes))])
    for batch in loader:
        index, crop, flip = photo_view(batch, sizes)
        assert torch.equal(crop, batch["crop"]) and torch.equal(index, batch["index"])
    assert flip.dtype == torch.bool


@pytest.mark.parametrize("augment", ["window", "crop"])
def test_draws_depend_on_seed_and_epoch_alone(shapes, tmp_path, augment):
    backbone = build_backbone("vgg_tiny", None, 8, freeze_stages=1)

    def draw(epoch, **options):
        torch.manual_seed(epoch + 17)
        config = replace(CONFIG, augment=augment, **options)
        loader = group_loader(backbone, shapes, tmp_path, config, epoch)
        if augment == "window":
            return torch.cat([batch["stem"] for batch in loader])
        return torch.cat([batch["image"].as_subclass(torch.Tensor) for batch in loader])

    first = draw(0)
    assert torch.equal(draw(0, workers=2), first)
    assert first.shape == draw(1).shape and not torch.equal(draw(1), first)
    assert not torch.equal(draw(0, seed=1), first)

    loader = group_loader(backbone, shapes, tmp_path, replace(CONFIG, augment=augment))
    list(loader)
    loader.batch_sampler.sampler.set_epoch(1)  # as a trainer does
    name = "stem" if augment == "window" else "image"
    again = torch.cat([batch[name].as_subclass(torch.Tensor) for batch in loader])
    assert torch.equal(again, draw(1))


def test_drawing_leaves_the_global_generator_alone(shapes, ramps, tmp_path):
    loader = group_loader(None, shapes, tmp_path, CROPS)
    state = torch.get_rng_state()
    loader.dataset[(0, 3)]
    assert torch.equal(torch.get_rng_state(), state)


def test_input_errors(shapes, ramps, tmp_path):
    with pytest.raises(InputError, match="window="):
        StemDataset(shapes, ramps, window=1.5)
    untagged = shapes.subset(range(len(shapes)))
    untagged.tags = None
    for make in (
        lambda: StemDataset(untagged, ramps),
        lambda: group_loader(None, untagged, tmp_path, CROPS),
        lambda: empty_store(tmp_path / "s", untagged),
    ):
        with pytest.raises(InputError, match="needs image tags"):
            make()
