from pathlib import Path

import pytest
import torch

from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.labels import AttentionStore
from pgnn_geo.labels.feature_bank import FeatureBank
from pgnn_geo.nn import build_backbone
from pgnn_geo.training.stems import StemDataset, empty_store, group_loader, photo_view

OPTIONS = {"size": 32, "groups_per_batch": 2, "workers": 0, "precision": "32-true"}


@pytest.fixture(scope="module")
def shapes(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64)


@pytest.fixture
def ramps(shapes, tmp_path) -> tuple[FeatureBank, FeatureBank]:
    """Stems that hold, for each photo, x and y of every position as fractions of the photo."""
    place = (torch.arange(16) + 0.5) / 16
    ramp = torch.stack([place.expand(16, 16), place[:, None].expand(16, 16)])
    rows = ramp.expand(len(shapes), -1, -1, -1)
    names = {"as-it-is": rows, "mirrored": rows.flip(-1)}
    return tuple(
        FeatureBank.build(tmp_path / f"{name}.npy", [x], len(shapes), {})
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


def test_the_crop_in_the_photo_is_what_the_image_shows(shapes, tmp_path):
    loader = group_loader(None, shapes, tmp_path, augment="crop", **OPTIONS)
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
        arguments = {**OPTIONS, "augment": augment, **options}
        loader = group_loader(backbone, shapes, tmp_path, epoch=epoch, **arguments)
        if augment == "window":
            return torch.cat([batch["stem"] for batch in loader])
        return torch.cat([batch["image"].as_subclass(torch.Tensor) for batch in loader])

    first = draw(0)
    assert torch.equal(draw(0, workers=2), first)
    assert first.shape == draw(1).shape and not torch.equal(draw(1), first)
    assert not torch.equal(draw(0, seed=1), first)

    loader = group_loader(backbone, shapes, tmp_path, **{**OPTIONS, "augment": augment})
    list(loader)
    loader.batch_sampler.sampler.set_epoch(1)  # as a trainer does
    name = "stem" if augment == "window" else "image"
    again = torch.cat([batch[name].as_subclass(torch.Tensor) for batch in loader])
    assert torch.equal(again, draw(1))


def test_drawing_leaves_the_global_generator_alone(shapes, ramps, tmp_path):
    loader = group_loader(None, shapes, tmp_path, augment="crop", **OPTIONS)
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
        lambda: group_loader(None, untagged, tmp_path, **OPTIONS),
        lambda: empty_store(tmp_path / "s", untagged),
    ):
        with pytest.raises(InputError, match="needs image tags"):
            make()
