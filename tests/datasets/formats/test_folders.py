"""Photos in a folder for each class."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from pgnn_geo.datasets import TaggedFolder
from pgnn_geo.errors import InputError, InputNote


@pytest.fixture
def classes(tmp_path: Path, write_photo: Callable[..., None]) -> Path:
    """Photos of each class are numbered, as many tools do."""
    root = tmp_path / "classes"
    for seed, name in enumerate(
        ("cat/1.jpg", "cat/deep/2.jpg", "dog/1.jpg", "traffic light/1.jpg")
    ):
        write_photo(root / name, seed=seed)
    return root


def tags_of(root: Path) -> dict[str, set[str]]:
    dataset = TaggedFolder(root, "folders")
    assert dataset.tag_source == "folders" and dataset.check() == []
    assert dataset.tags is not None
    return {
        image_id: {dataset.classes[k] for k in row.nonzero().flatten().tolist()}
        for image_id, row in zip(dataset.image_ids, dataset.tags, strict=True)
    }


def test_it_is_what_torchvision_reads(classes: Path) -> None:
    theirs = ImageFolder(str(classes))
    wanted = {
        Path(path).relative_to(classes).with_suffix("").as_posix(): {theirs.classes[label]}
        for path, label in theirs.samples
    }
    assert tags_of(classes) == wanted
    assert TaggedFolder(classes, "folders").classes == tuple(theirs.classes)


def test_the_same_photo_in_two_folders_has_both_tags(classes: Path) -> None:
    """The same content under any name, and the same name saved once more; not the name alone."""
    shutil.copy(classes / "cat" / "1.jpg", classes / "traffic light" / "another name.jpg")
    with Image.open(classes / "cat" / "deep" / "2.jpg") as image:
        image.save(classes / "dog" / "2.jpg", quality=80)
    words = r"tags of all: dog/2.jpg is cat/deep/2.jpg, traffic light/another name.jpg is cat/1"
    with pytest.warns(InputNote, match=words):
        found = tags_of(classes)
    assert found == {
        "cat/1": {"cat", "traffic light"},
        "cat/deep/2": {"cat", "dog"},
        "dog/1": {"dog"},
        "traffic light/1": {"traffic light"},
    }
    (classes / "dog" / "1.jpg").write_bytes(b"no photo")  # said by a check, not here
    with pytest.warns(InputNote):
        assert "dog/1.jpg" in TaggedFolder(classes, "folders").check()[0]


def test_folders_that_are_no_classes(classes: Path, write_photo: Callable[..., None]) -> None:
    write_photo(classes / "beside.jpg")
    with pytest.raises(InputError, match=r"photos beside them: beside.jpg"):
        TaggedFolder(classes, "folders")
    (classes / "beside.jpg").unlink()
    splits = classes.parent / "splits"
    for split in ("train", "val"):
        shutil.copytree(classes, splits / split)
    with pytest.raises(InputError, match=r"has the splits train, val; name one.*splits/train"):
        TaggedFolder(splits, "folders")


def test_photos_of_one_colour_are_not_the_same(tmp_path: Path) -> None:
    for name, grey in {"cat/1.png": 100, "dog/1.png": 101}.items():
        (tmp_path / name).parent.mkdir()
        Image.new("L", (20, 20), grey).save(tmp_path / name)
    assert tags_of(tmp_path) == {"cat/1": {"cat"}, "dog/1": {"dog"}}
