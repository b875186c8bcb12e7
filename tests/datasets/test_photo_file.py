"""Photos as cameras, microscopes and other programs write them."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pgnn_geo.datasets import TaggedFolder, load_photo
from pgnn_geo.datasets.photo_file import MAX_PIXELS, count_pixels, load_thumbnail
from pgnn_geo.errors import InputError


def exif_block(orientation: int, *bad: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of an orientation, and of entries (tag, type, count, value) that are broken."""
    entries = [(0x0112, 3, 1, struct.pack("<HH", orientation, 0)), *bad]
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in sorted(entries))
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    return head + body + struct.pack("<I", 0)


BAD = {
    "offset beyond the end": (0x829A, 5, 1, struct.pack("<I", 99_999)),
    "unknown type": (0x010F, 99, 1, b"abcd"),
    "text in a number": (0x0100, 2, 2, b"ab\0\0"),
    "huge count": (0x010E, 2, 2**31, struct.pack("<I", 8)),
    "negative rational": (0x011A, 10, 1, struct.pack("<I", 8)),
}


def folder_of(root: Path) -> TaggedFolder:
    csv = root.parent / "tags.csv"
    csv.write_text("image,labels\n" + "".join(f"{p.name},x\n" for p in sorted(root.iterdir())))
    return TaggedFolder(root, csv)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_only_the_orientation_of_exif_matters(
    tmp_path: Path, write_photo: Callable[..., None], name: str, orientation: int
) -> None:
    root = tmp_path / "photos"
    write_photo(root / "a.jpg", exif=exif_block(orientation, BAD[name]))
    write_photo(tmp_path / "plain.jpg")
    dataset = folder_of(root)
    assert dataset.check() == []
    plain = load_photo(tmp_path / "plain.jpg")
    wanted = {1: plain, 3: plain.flip(1, 2), 6: plain.flip(1).transpose(1, 2)}[orientation]
    assert torch.equal(dataset[0]["image"], wanted)
    assert dataset.photo_size(0) == tuple(wanted.shape[1:])


@pytest.mark.parametrize("orientation", range(0, 11))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_all_orientations_are_pillows(
    tmp_path: Path, write_photo: Callable[..., None], orientation: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_photo(tmp_path / f"a{suffix}", exif=exif)
    with Image.open(tmp_path / f"a{suffix}") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(load_photo(tmp_path / f"a{suffix}").permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0garbage!", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_exif_that_is_none(tmp_path: Path, write_photo: Callable[..., None], exif: bytes) -> None:
    root = tmp_path / "photos"
    write_photo(root / "a.jpg", exif=exif)
    dataset = folder_of(root)
    assert dataset.check() == [] and dataset[0]["image"].shape == (3, 24, 36)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_16_bit_grey_is_scaled(tmp_path: Path, bits: int) -> None:
    """Whatever the depth of the detector, white is white and grey in the middle."""
    values = np.linspace(0, 2**bits - 1, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "I;16"
    photo = load_photo(tmp_path / "a.png")
    assert photo.shape == (3, 16, 16) and torch.equal(photo[0], photo[2])
    expected = torch.arange(256).view(16, 16)
    assert (photo[0].int() - expected).abs().max() <= 1
    root = tmp_path / "photos"
    root.mkdir()
    (tmp_path / "a.png").rename(root / "a.png")
    dataset = folder_of(root)
    assert dataset.check() == [] and torch.equal(dataset[0]["image"], photo)


@pytest.mark.parametrize("factor", [1, 16, 256])
def test_hot_pixels_do_not_make_a_16_bit_photo_black(tmp_path: Path, factor: int) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64) % 200 * factor
    Image.fromarray(values).save(tmp_path / "a.png")
    values[3, 5] = values[40, 7] = 65535
    Image.fromarray(values).save(tmp_path / "hot.png")
    photo, hot = load_photo(tmp_path / "a.png"), load_photo(tmp_path / "hot.png")
    assert hot[0, 3, 5] == hot[0, 40, 7] == 255 and photo.max() >= 128
    hot[:, 3, 5], hot[:, 40, 7] = photo[:, 3, 5], photo[:, 40, 7]
    assert torch.equal(photo, hot)


def test_16_bit_colours_that_would_be_black_are_refused(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    root = tmp_path / "photos"
    root.mkdir()
    values = np.arange(192, dtype=np.uint16).reshape(8, 8, 3)
    cv2.imwrite(str(root / "full.png"), values * 341)
    cv2.imwrite(str(root / "low.png"), values * 20)
    cv2.imwrite(str(root / "lower.png"), values)  # of which nothing is left
    dataset = folder_of(root)
    problems = dataset.check()
    for index, name in enumerate(("low.png", "lower.png"), start=1):
        assert name in problems[index - 1] and "8 bits" in problems[index - 1]
        with pytest.raises(InputError, match=name):
            dataset[index]
    assert dataset[0]["image"].max() == 254


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_modes(tmp_path: Path, mode: str) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    Image.new("L" if mode == "I;16" else "RGB", (5, 4), 200).convert(mode).save(root / "a.png")
    dataset = folder_of(root)
    assert dataset.check() == [] and dataset[0]["image"].shape == (3, 4, 5)


def test_cmyk_and_several_pictures_in_one_file(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    Image.new("CMYK", (5, 4), (0, 255, 255, 0)).save(root / "cmyk.jpg", quality=100)
    first, second = Image.new("RGB", (5, 4), "red"), Image.new("RGB", (5, 4), "blue")
    first.save(root / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    dataset = folder_of(root)
    assert dataset.check() == []
    for item in dataset:
        red, green, blue = item["image"].float().mean(dim=(1, 2)).tolist()
        assert red > 240 and green < 20 and blue < 20


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "the file is empty"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "it is WebP; convert it to JPEG or PNG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it is HEIC or AVIF"),
        (b"<html>Not found</html>", "no image of a known kind"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no image of a known kind"),
    ],
)
def test_what_a_photo_is_instead(tmp_path: Path, data: bytes, words: str) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.jpg").write_bytes(data)
    dataset = folder_of(root)
    (problem,) = dataset.check()
    assert "a.jpg' cannot be decoded" in problem and words in problem
    for read in (lambda: dataset[0], lambda: dataset.photo_size(0)):
        with pytest.raises(InputError, match=words):
            read()


def test_the_bound_on_pixels(tmp_path: Path) -> None:
    """What Pillow would call a bomb is read if it may be; what exceeds the bound is named."""
    root = tmp_path / "photos"
    root.mkdir()
    Image.new("1", (19_000, 10_000)).save(root / "pano.png")
    assert 19_000 * 10_000 > MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    words = r"pano\.png' has 19000 x 10000 pixels, more than the bound of 178956970.*max_pixels"
    (problem,) = folder_of(root).check(decode=False)
    with pytest.raises(InputError, match=words):
        load_photo(root / "pano.png")
    with pytest.raises(InputError, match=words):
        raise InputError(problem)
    wider = TaggedFolder(root, tmp_path / "tags.csv", max_pixels=200_000_000)
    assert wider.check(decode=False) == [] and wider.photo_size(0) == (10_000, 19_000)
    assert count_pixels(root / "pano.png", 200_000_000) == 190_000_000
    Image.new("RGB", (30, 20)).save(root / "pano.png")
    with pytest.raises(InputError, match="the bound of 599"):
        load_photo(root / "pano.png", max_pixels=599)
    assert load_photo(root / "pano.png", max_pixels=600).shape == (3, 20, 30)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_thumbnails_are_the_photo_at_another_size(tmp_path: Path, orientation: int) -> None:
    ramp = np.add.outer(np.arange(300) // 3, np.arange(400) // 4).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], axis=-1))
    image.save(tmp_path / "photo.jpg", quality=95, exif=exif_block(orientation))
    small = load_thumbnail(tmp_path / "photo.jpg", 100)
    with Image.open(tmp_path / "photo.jpg") as whole:
        upright = ImageOps.exif_transpose(whole)
        expected = upright.resize(small.size, Image.Resampling.BOX)
    assert max(small.size) == 100
    assert small.size == tuple(round(side / 4) for side in upright.size)
    difference = np.asarray(small, dtype=int) - np.asarray(expected, dtype=int)
    assert np.abs(difference).mean() < 2
    assert load_thumbnail(tmp_path / "photo.jpg", 1000).size == upright.size


def test_a_link_to_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    with pytest.raises(InputError, match=r"a\.jpg' does not exist: it is a link to 'gone\.jpg'"):
        load_photo(tmp_path / "a.jpg")
