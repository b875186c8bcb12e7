import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from pgnn_geo.datasets import TaggedFolder
from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import save_mask


@pytest.fixture
def photos(tmp_path: Path, write_photo: Callable[..., None]) -> Path:
    root = tmp_path / "photos"
    for seed, name in enumerate(("one.jpg", "trip/two.JPEG", "trip/far/three.png")):
        write_photo(root / name, seed=seed)
    return root


def write_csv(root: Path, *rows: str, head: str = "image,labels") -> Path:
    path = root.parent / "tags.csv"
    path.write_text("\n".join((head, *rows)) + "\n", encoding="utf-8-sig")
    return path


def test_names_with_and_without_extension_and_folder(photos: Path) -> None:
    csv = write_csv(photos, "one,zebra ant", "trip/two.JPEG,ant", "three,zebra")
    dataset = TaggedFolder(photos, csv)
    assert dataset.classes == ("ant", "zebra")  # discovered, sorted
    assert dataset.image_ids == ["one", "trip/two", "trip/far/three"]
    assert dataset.tags.tolist() == [[1, 1], [1, 0], [0, 1]]
    assert dataset.image_path(2) == photos / "trip" / "far" / "three.png"
    assert dataset[2]["image"].shape == (3, 24, 36)
    assert dataset.tag_source == "csv" and dataset.check() == []
    assert TaggedFolder(photos, csv, classes="zebra,ant").tags[1].tolist() == [0, 1]


def test_masks_below_the_photos_are_not_photos(photos: Path) -> None:
    csv = write_csv(photos, "one,a", "two,a", "three,b")
    for name in ("one", "trip/two", "trip/far/three"):
        save_mask(photos / "masks" / f"{name}.png", torch.full((24, 36), 2))
    dataset = TaggedFolder(photos, csv, masks=photos / "masks")
    assert dataset[1]["mask"].unique().tolist() == [2] and dataset.check() == []


def test_exif_orientation_is_honoured(photos: Path) -> None:
    with Image.open(photos / "one.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6  # turn a quarter clockwise to see it upright
        image.save(photos / "one.jpg", exif=exif, quality=95)
    csv = write_csv(photos, "one,a", "two,a", "three,b")
    for name in ("one", "trip/two", "trip/far/three"):
        size = (36, 24) if name == "one" else (24, 36)
        save_mask(photos.parent / "masks" / f"{name}.png", torch.ones(size, dtype=torch.long))
    dataset = TaggedFolder(photos, csv, masks=photos.parent / "masks")
    assert dataset.check() == []
    item = dataset[0]
    with Image.open(photos / "one.jpg") as image:
        turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_270)
    assert item["image"].shape == (3, 36, 24) and item["size"].tolist() == [36, 24]
    assert [dataset.photo_size(i) for i in range(3)] == [(36, 24), (24, 36), (24, 36)]
    (photos / "one.jpg").rename(photos / "gone.jpg")
    with pytest.raises(InputError, match="does not exist"):
        dataset.photo_size(0)
    (photos / "gone.jpg").rename(photos / "one.jpg")
    assert item["image"][:, 5, 7].tolist() == list(turned.getpixel((7, 5)))


@pytest.mark.parametrize(
    "rows, message",
    [
        (("one,a", "two,a"), r"no row for photos.*trip/far/three.png \(1 in all\)"),
        (("one,a", "one.jpg,b", "two,a", "three,a"), r"more than one row or file for one"),
        (("one,a,b", "two,a", "three,a"), r"labels are separated by spaces.*line 2 \(1 in all\)"),
        (("one", "two,a", "three,a"), r"line 2 \(1 in all\)"),
        (("one,a", "two,a", "three,a", "../etc/x,a"), r"outside the folder: \.\./etc/x"),
        (("one,", "two,", "three,"), "has no labels"),
        ((), "has no rows"),
    ],
)
def test_bad_rows(photos: Path, rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TaggedFolder(photos, write_csv(photos, *rows))


def test_other_bad_input(photos: Path, write_photo: Callable[..., None]) -> None:
    csv = write_csv(photos, "one,a", "two,a", "three,cta")
    with pytest.raises(InputError, match=r"'cta' at image trip/far/three.*valid: a, cat"):
        TaggedFolder(photos, csv, classes=["a", "cat"])
    with pytest.raises(InputError, match="not a folder"):
        TaggedFolder(photos / "none", csv)
    with pytest.raises(InputError, match=r"no file of tags '.*none\.csv'; write one with"):
        TaggedFolder(photos, photos / "none.csv")
    with pytest.raises(InputError, match=r"columns image,labels.*got 'file,what'"):
        TaggedFolder(photos, write_csv(photos, "one,a", head="file,what"))
    with pytest.raises(InputError, match="cannot be read as CSV"):
        TaggedFolder(photos, photos / "one.jpg")
    write_photo(photos / "three.jpg")
    with pytest.raises(InputError, match=r"no row for photos.*trip/far"):
        TaggedFolder(photos, write_csv(photos, "one,a", "two,a", "three,a"))  # the one on top
    write_photo(photos / "trip" / "one.jpg")
    (photos / "one.jpg").unlink()
    write_photo(photos / "other" / "one.jpg")
    with pytest.raises(InputError, match=r"one \(other/one.jpg or trip/one.jpg\)"):
        TaggedFolder(photos, write_csv(photos, "one,a"))


def test_names_that_look_the_same_are_told_apart(
    tmp_path: Path, write_photo: Callable[..., None]
) -> None:
    """Of two files in two Unicode forms, the one without a row is shown with escapes."""
    root = tmp_path / "photos"
    for form in ("NFC", "NFD"):
        write_photo(root / f"{unicodedata.normalize(form, 'ä')}.jpg")
    write_photo(root / "größe.jpg")
    with pytest.raises(InputError) as raised:
        TaggedFolder(root, write_csv(root, "ä.jpg,cat"))
    assert "'a\\u0308.jpg' (looks as another file's name), größe.jpg (2 in" in str(raised.value)


def test_partial_leaves_photos_out(photos: Path) -> None:
    dataset = TaggedFolder(photos, write_csv(photos, "two,a"), partial=True)
    assert dataset.image_ids == ["trip/two"]


def test_check_lists_every_problem(photos: Path) -> None:
    csv = write_csv(photos, "one,a b", "two,", "three,b", "gone,a")
    masks = photos.parent / "masks"
    save_mask(masks / "one.png", torch.ones(24, 35, dtype=torch.long))
    save_mask(masks / "trip" / "two.png", torch.full((24, 36), 3))
    (masks / "trip" / "far").mkdir()
    Image.new("RGB", (36, 24)).save(masks / "trip" / "far" / "three.png")
    cut = photos / "trip" / "far" / "three.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    dataset = TaggedFolder(photos, csv, masks=masks)
    problems = dataset.check()
    wanted = [
        "one.png' is 35 x 24, its photo 36 x 24",
        "image trip/two has no tags",
        "two.png' has labels 3 (1 in all), want 0..2 or 255",
        "three.png' cannot be decoded",
        "three.png' has mode RGB",
        "gone' does not exist",
    ]
    assert len(problems) == len(wanted)
    for problem, part in zip(problems, wanted, strict=True):
        assert part in problem
    with pytest.raises(InputError, match=r"6 problem\(s\)"):
        dataset.validate()
    for index, part in ((0, "35 x 24"), (1, "labels 3"), (2, "cannot be decoded"), (3, "gone")):
        with pytest.raises(InputError, match=part):
            dataset[index]


@pytest.mark.parametrize("kept", [0, 0.01, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncation_shows_wherever_the_file_ends(
    tmp_path: Path, write_photo: Callable[..., None], kept: float, progressive: bool
) -> None:
    root = tmp_path / "photos"
    write_photo(root / "a.jpg", size=(240, 320), quality=95, progressive=progressive)
    data = (root / "a.jpg").read_bytes()
    (root / "a.jpg").write_bytes(data[: int(kept * len(data))])
    dataset = TaggedFolder(root, write_csv(root, "a,x"))
    (problem,) = dataset.check()
    assert "a.jpg' cannot be decoded" in problem
    with pytest.raises(InputError, match=r"a\.jpg' cannot be decoded"):
        dataset[0]


def test_a_foreign_file_with_a_photos_name(photos: Path) -> None:
    Image.new("RGB", (8, 8)).save(photos / "one.jpg", format="GIF")
    dataset = TaggedFolder(photos, write_csv(photos, "one,a", "two,a", "three,a"))
    assert "one.jpg' cannot be decoded" in dataset.check(decode=False)[0]


def test_a_subset_is_a_data_set_of_its_own(photos: Path) -> None:
    csv = write_csv(photos, "one,zebra ant", "trip/two.JPEG,ant", "three,zebra")
    whole = TaggedFolder(photos, csv)
    part = whole.subset([2, 0])
    assert part.image_ids == ["trip/far/three", "one"] and part.classes == whole.classes
    assert part.tags.tolist() == [[0, 1], [1, 1]] and len(part) == 2 and len(whole) == 3
    assert part[0]["index"] == 0 and torch.equal(part[0]["image"], whole[2]["image"])
    assert part.image_path(0) == whole.image_path(2) and part.check() == []
    with pytest.raises(InputError, match=r"0\.\.2, got 3 \(1 in all\)"):
        whole.subset([0, 3])
