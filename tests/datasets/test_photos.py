import pytest
import torch

from pgnn_geo.datasets.photos import find_photos, read_photo_tags
from pgnn_geo.errors import InputError


@pytest.fixture
def trip(tmp_path):
    """Files are listed by their names, not opened."""
    for name in ("day1/a.jpg", "day1/b.PNG", "day2/a.jpeg", "day2/deep/c.jpg", "day2/notes.txt"):
        (tmp_path / "trip" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "trip" / name).touch()
    return tmp_path / "trip"


def ids(*paths, **kwargs):
    return [photo.photo_id for photo in find_photos(paths, **kwargs)[1]]


def test_names_are_paths_below_the_folder_that_all_share(trip, monkeypatch):
    everything = ["day1/a", "day1/b", "day2/a", "day2/deep/c"]
    assert ids(trip) == everything
    assert ids(trip / "day1", trip / "day2") == everything
    assert ids(trip / "day1") == ["a", "b"]
    assert ids(trip / "day1" / "a.jpg") == ["a"]
    assert ids(trip / "day1" / "a.jpg", trip / "day2" / "a.jpeg") == ["day1/a", "day2/a"]
    assert ids(trip, trip / "day1", trip / "day1" / "a.jpg") == everything
    monkeypatch.chdir(trip)
    assert ids("day1", "./day2/../day2") == everything
    root, photos = find_photos(["."])
    assert root == trip and photos[0].path == trip / "day1" / "a.jpg"


def test_results_are_no_photos(trip):
    for name in ("out/masks/day1/a.png", "out/picture.png"):
        (trip / name).parent.mkdir(parents=True, exist_ok=True)
        (trip / name).touch()
    found = ids(trip, leave_out=[trip / "out" / "masks"])
    assert found == ["day1/a", "day1/b", "day2/a", "day2/deep/c", "out/picture"]


def test_what_cannot_be_listed(trip, tmp_path):
    with pytest.raises(InputError, match="Name one or more"):
        find_photos([])
    with pytest.raises(InputError, match=r"no photos at .*elsewhere \(1 in all\)"):
        find_photos([trip, tmp_path / "elsewhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no JPEG or PNG"):
        find_photos([tmp_path / "empty"])
    (trip / "day1" / "a.png").touch()
    with pytest.raises(InputError, match="would both be called day1/a"):
        find_photos([trip])


def test_tags(trip, tmp_path):
    csv = tmp_path / "labels.csv"
    csv.write_text("image,labels\nb,cat dog\nday2/a,\nday1/a.jpg,dog\nc.jpg,cat\nother.jpg,cat\n")
    root, photos = find_photos([trip])
    tags = read_photo_tags(csv, root, photos, ("cat", "dog"))
    assert torch.equal(tags, torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0]]))
    with pytest.raises(InputError, match="unknown class 'dog'"):
        read_photo_tags(csv, root, photos, ("cat", "cow"))
    csv.write_text("image,labels\nb,cat\n")
    with pytest.raises(InputError, match=r"no tags for .*day1/a\.jpg"):
        read_photo_tags(csv, root, photos, ("cat", "dog"))
