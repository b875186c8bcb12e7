import numpy as np
import pytest
import torch
from PIL import Image

from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import load_mask, save_maps, save_mask, voc_palette


def test_palette_is_vocs():
    palette = voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    # Colours as the development kit documents them.
    for label, colour in {
        0: (0, 0, 0),
        1: (128, 0, 0),  # aeroplane
        8: (64, 0, 0),  # cat
        15: (192, 128, 128),  # person
        20: (0, 64, 128),  # tv monitor
        255: (224, 224, 192),  # boundary
    }.items():
        assert tuple(palette[label]) == colour
    assert len(np.unique(palette, axis=0)) == 256


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_round_trip_keeps_every_label(tmp_path, dtype):
    mask = torch.arange(256).view(16, 16).to(dtype)
    path = tmp_path / "made" / "a.png"
    save_mask(path, mask)
    assert torch.equal(load_mask(path), mask.byte())
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((15, 0)) == (192, 128, 128)
        assert np.array_equal(np.array(image.getpalette()).reshape(-1, 3), voc_palette())


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (5, 7)])
def test_odd_sizes_and_few_labels(tmp_path, shape):
    mask = np.full(shape, 255, dtype=np.uint8)
    save_mask(tmp_path / "a.png", mask.T.copy().T)  # not contiguous
    assert np.array_equal(load_mask(tmp_path / "a.png").numpy(), mask)


def test_grey_masks_are_read(tmp_path):
    grey = np.array([[0, 3], [255, 20]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.array_equal(load_mask(tmp_path / "a.png").numpy(), grey)


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(2, 2),
        torch.zeros(1, 2, 2).byte(),
        torch.zeros(0, 2).byte(),
        torch.full((2, 2), 256),
        torch.full((2, 2), -1),
    ],
)
def test_bad_mask_writes_nothing(tmp_path, mask):
    with pytest.raises(InputError, match=r"a\.png"):
        save_mask(tmp_path / "a.png", mask)
    assert list(tmp_path.iterdir()) == []


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_mask(tmp_path / "none.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match=r"rgb\.png.*mode RGB"):
        load_mask(tmp_path / "rgb.png")
    save_mask(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 255, (64, 64)))
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut\.png"):
        load_mask(tmp_path / "cut.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(InputError, match=r"text\.png"):
        load_mask(tmp_path / "text.png")


def test_maps_are_kept_one_after_the_other(tmp_path):
    torch.manual_seed(0)
    maps = [torch.rand(2, 4, 4), torch.rand(1, 4, 4)]
    save_maps(tmp_path / "maps.npy", maps)
    found = np.load(tmp_path / "maps.npy")
    assert found.shape == (3, 4, 4) and found.dtype == np.uint8
    np.testing.assert_allclose(found / 255, torch.cat(maps).numpy(), atol=0.5 / 255 + 1e-6)
