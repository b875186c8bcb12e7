"""Files of labelme and labelImg beside the photos."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pgnn_geo.app.config import DataConfig
from pgnn_geo.datasets.formats import read_tags, recognise
from pgnn_geo.errors import InputError, InputNote

NAMES = ["one.jpg", "trip/two.png", "trip/far/three.jpg"]


@pytest.fixture
def photos(tmp_path: Path, write_photo: Callable[..., None]) -> Path:
    for name in NAMES:
        write_photo(tmp_path / "photos" / name)
    return tmp_path / "photos"


def labelme(labels: list[str], **flags: bool) -> str:
    shapes = [{"label": name, "points": [[1, 1], [2, 2], [3, 1]]} for name in labels]
    return json.dumps({"version": "5.5.0", "flags": flags, "shapes": shapes, "imageData": None})


def test_a_file_beside_each_photo(photos: Path) -> None:
    """Of labelme's shapes and flags, and labelImg's objects; folders are then no classes."""
    (photos / "one.json").write_text(labelme(["cat", "cat", "__ignore__"], dog=True, cow=False))
    (photos / "trip" / "two.xml").write_text(
        "<annotation><object><name>dog</name><part><name>head</name></part></object></annotation>"
    )
    with pytest.warns(InputNote, match=r"a file beside each photo \(--data folder --tags beside"):
        assert recognise(photos) == ("folder", "beside")
    found = read_tags("beside", photos, dict.fromkeys(NAMES))
    assert found.tags == {NAMES[0]: ("cat", "__ignore__", "dog"), NAMES[1]: ("dog",), NAMES[2]: ()}
    dataset = DataConfig("auto", str(photos)).build()
    assert dataset.check() == ["image trip/far/three has no tags"]
    (photos / "trip" / "far" / "three.json").write_text('[{"label": "cat"}]')
    with pytest.raises(InputError, match=r"three\.json \(1 in all\); want 'shapes'"):
        read_tags("beside", photos, dict.fromkeys(NAMES))
    for file in (*photos.rglob("*.json"), *photos.rglob("*.xml")):
        file.unlink()
    with pytest.raises(InputError, match="has a file of its name beside it"):
        read_tags("beside", photos, dict.fromkeys(NAMES))
    (photos / "trip" / "two.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(InputError, match=r"two\.txt' may be of YOLO.*export COCO JSON"):
        recognise(photos)
