"""Which files are photos, and which of them a name means."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgnn_geo.datasets.listing import list_masks, list_photos, match_photos, match_rows
from pgnn_geo.datasets.photos import find_photos
from pgnn_geo.errors import InputError, InputNote
from pgnn_geo.io.files import mark_results
from pgnn_geo.io.masks import save_mask

NFC, NFD = (unicodedata.normalize(form, "größe") for form in ("NFC", "NFD"))


@pytest.fixture
def trip(tmp_path: Path) -> Path:
    """Files are listed by their names, not opened."""
    root = tmp_path / "trip"
    for name in ("a.jpg", "b.PNG", "day/c.jpeg", "day/d.jfif", "day/e.JPE", "day/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


PHOTOS = ["a.jpg", "b.PNG", "day/c.jpeg", "day/d.jfif", "day/e.JPE"]


def test_endings(trip: Path) -> None:
    assert list(list_photos(trip)) == PHOTOS
    (trip / "folder.jpg").mkdir()
    assert list(list_photos(trip)) == PHOTOS


def test_copies_of_other_programs_are_no_photos(trip: Path) -> None:
    for name in (
        *("._a.jpg", ".a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/._a.jpg"),
        *("day/@eaDir/c.jpeg/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/a.png", "$RECYCLE.BIN/a.jpg"),
    ):
        (trip / name).parent.mkdir(parents=True, exist_ok=True)
        (trip / name).touch()
    assert list(list_photos(trip)) == PHOTOS
    assert [photo.path.name for photo in find_photos([trip])[1]] == [Path(p).name for p in PHOTOS]


def test_images_of_other_formats_are_named(trip: Path) -> None:
    for name in ("f.webp", "day/g.HEIC"):
        (trip / name).touch()
    with pytest.warns(InputNote, match=r"neither JPEG nor PNG: day/g.HEIC, f.webp \(2 in all\)"):
        assert list(list_photos(trip)) == PHOTOS


def test_results_are_no_photos(trip: Path) -> None:
    for name in ("runs/x/cam/labels/a.png", "runs/x/cam/labels/day/c.png"):
        (trip / name).parent.mkdir(parents=True, exist_ok=True)
        (trip / name).touch()
    mark_results(trip / "runs/x/cam/labels")
    assert list(list_photos(trip)) == PHOTOS
    assert list(list_photos(trip / "runs/x/cam/labels")) == ["a.png", "day/c.png"]  # asked for


def test_linked_folders_are_followed_once(trip: Path, tmp_path: Path) -> None:
    for name in ("x.jpg", "deep/y.jpg"):
        (tmp_path / "disk" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "disk" / name).touch()
    (trip / "disk").symlink_to(tmp_path / "disk")
    (trip / "z.jpg").symlink_to(tmp_path / "disk" / "x.jpg")  # a file of another name
    wanted = sorted([*PHOTOS, "disk/x.jpg", "disk/deep/y.jpg", "z.jpg"])
    assert list(list_photos(trip)) == wanted
    (tmp_path / "disk" / "back").symlink_to(trip)  # a loop
    (tmp_path / "disk" / "deep" / "self").symlink_to("self")
    (trip / "again").symlink_to(trip / "day")  # a second name of what is there
    (trip / "gone").symlink_to(tmp_path / "nothing")
    assert list(list_photos(trip)) == wanted
    linked = tmp_path / "link"
    linked.symlink_to(trip)
    assert list(list_photos(linked)) == wanted


def test_a_folder_that_cannot_be_read_is_named(trip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir

    def denied(path: Path) -> list[str]:
        if Path(path).name == "day":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(InputError, match=r"folder '.*trip/day' cannot be read"):
        list_photos(trip)


def test_label_images_beside_their_photos(trip: Path) -> None:
    for name in ("masks/a.png", "masks/b.png", "day/truth/c.png", "day/truth/d.png"):
        save_mask(trip / name, np.zeros((2, 2), dtype=np.uint8))
    with pytest.warns(InputNote) as notes:
        assert list(list_photos(trip)) == PHOTOS
    assert [str(note.message).split("holds")[0] for note in notes] == [
        f"'{trip / 'day' / 'truth'}' ",
        f"'{trip / 'masks'}' ",
    ]
    # Pictures, or one that no photo beside it is named as, are photos.
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    picture.save(trip / "masks" / "b.png")
    save_mask(trip / "day" / "truth" / "z.png", np.zeros((2, 2), dtype=np.uint8))
    wanted = [*PHOTOS, "masks/a.png", "masks/b.png"]
    wanted += ["day/truth/c.png", "day/truth/d.png", "day/truth/z.png"]
    assert list(list_photos(trip)) == sorted(wanted)
    left = list_photos(trip, [trip / "masks", trip / "day" / "truth"])  # but not if it is said
    assert list(left) == PHOTOS


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB"])
def test_label_images_in_a_folder_beside_that_of_the_photos(tmp_path: Path, mode: str) -> None:
    """``images`` and ``masks``, whose colours are few; photos of another class have many."""
    rng = np.random.default_rng(0)
    mask = np.zeros((9, 9), dtype=np.uint8)
    mask[2:5] = 1
    for name in ("1", "2"):
        for folder in ("images/day", "masks/day", "grey/day"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        picture.save(tmp_path / f"images/day/{name}.jpg")
        picture.convert("L").save(tmp_path / f"grey/day/{name}.png")
        Image.fromarray(mask).convert(mode).save(tmp_path / f"masks/day/{name}.png")
    wanted = ["grey/day/1.png", "grey/day/2.png", "images/day/1.jpg", "images/day/2.jpg"]
    with pytest.warns(InputNote, match="masks' holds label images") as notes:
        assert list(list_photos(tmp_path)) == wanted
    assert len(notes) == 1
    picture.save(tmp_path / "masks/day/2.png")
    assert list(list_photos(tmp_path)) == sorted([*wanted, "masks/day/1.png", "masks/day/2.png"])


def test_classes_of_grey_photos_with_the_same_numbers_are_no_masks(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    assert list(list_photos(tmp_path)) == ["cat/1.png", "cat/2.png", "dog/1.png"]


@pytest.mark.parametrize(
    "name, photo",
    [
        ("trip/one.jpg", "trip/one.jpg"),
        ("./trip\\one.jpg", "trip/one.jpg"),
        ("trip/one", "trip/one.jpg"),
        ("one", "trip/one.jpg"),
        ("ONE.JPG", "trip/one.jpg"),
        (NFC, f"{NFD}.jpg"),
        (f"{NFC.upper()}.JPG", f"{NFD}.jpg"),
        ("two", "two"),  # there is none
        ("IMG.jpg", "IMG.jpg"),  # of the two, the one that is spelt so
        ("img.jpg", "img.jpg"),
        ("we\\ird.jpg", "we\\ird.jpg"),
    ],
)
def test_names(name: str, photo: str) -> None:
    photos = ["trip/one.jpg", f"{NFD}.jpg", "IMG.jpg", "img.jpg", "we\\ird.jpg"]
    assert match_photos([name], photos, "tags.csv") == [photo]


def test_names_that_fit_several() -> None:
    with pytest.raises(InputError, match=r"Img.jpg \(IMG.jpg or img.jpg\)"):
        match_photos(["Img.jpg"], ["IMG.jpg", "img.jpg"], "tags.csv")
    both = [f"a/{NFC}.jpg", f"b/{NFD}.jpg"]  # which look alike, so they are spelt out
    with pytest.raises(InputError, match=r"gr\\xf6\\xdfe.* or .*gro\\u0308"):
        match_photos([NFC.upper()], both, "tags.csv")
    assert match_photos([NFC, NFD], both, "tags.csv") == both
    with pytest.raises(InputError, match=r"more than one row or file for one.jpg"):
        match_rows({"one": 1, "One.jpg": 2}, ["one.jpg"], "tags.csv")
    for name in ("/etc/passwd", "../x.jpg", "a\0b"):
        with pytest.raises(InputError, match="outside the folder"):
            match_photos([name], ["x.jpg"], "tags.csv")


def test_masks_in_any_form_of_a_name(tmp_path: Path) -> None:
    for name in (f"{NFD}.png", "deep/a.PNG", "deep/a.jpg", "._b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_masks(tmp_path) == {
        NFC: tmp_path / f"{NFD}.png",
        "deep/a": tmp_path / "deep" / "a.PNG",
    }
