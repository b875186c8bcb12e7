"""Which photos `predict` takes, and what it does where it cannot."""

import errno

import pytest
import torch
from PIL import Image

from pgnn_geo.datasets.photos import find_photos
from pgnn_geo.inference import predict
from pgnn_geo.inference.predict import predict_folder
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io import write_voc_submission
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import load_mask
from pgnn_geo.nn import DeepLabV2


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    network = DeepLabV2("vgg_tiny", num_classes=3, weights=None, hidden_channels=16).eval()
    return Segmenter(network, ("cat", "dog", "cow"), SupervisionLedger(tags="csv"))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.png", "sub/a.jpg", "sub/c.jpg")):
        Image.effect_noise((80 + 7 * number, 60), 80).convert("RGB").save(folder / name)
    return folder


def test_a_name_that_is_too_long_stops_no_other(segmenter, photos, tmp_path, monkeypatch):
    save = predict.save_mask

    def short(path, mask):
        if path.name == "b.png":
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(path))
        save(path, mask)

    monkeypatch.setattr(predict, "save_mask", short)
    done = predict_folder(segmenter, [photos], tmp_path / "out")
    assert [p.photo_id for p in done.photos] == ["a", "sub/a", "sub/c"] and done.new == 3
    (problem,) = done.problems
    assert f"'{photos / 'b.png'}': its name is too long" in problem


def test_long_names_and_results_among_the_photos(segmenter, photos):
    """As long as the system allows; results in the folder of the photos are never photos."""
    name = "x" * 251
    (photos / "a.jpg").rename(photos / f"{name}.jpg")
    wanted = ["b", "sub/a", "sub/c", name]
    for out in (photos, photos / "out", photos / "sub" / "out"):
        done = predict_folder(segmenter, [photos], out, overlays=True)
        assert [p.photo_id for p in done.photos] == wanted and not done.problems
    # Also for a second call, which goes elsewhere, and if the first had made a submission.
    masks = [(n, load_mask(photos / "masks" / f"{n}.png")) for n in wanted]
    write_voc_submission(photos, masks, ["cat", "dog", "cow"])
    assert [p.photo_id for p in find_photos([photos])[1]] == wanted


def test_the_bound_on_pixels(segmenter, photos, tmp_path):
    done = predict_folder(segmenter, [photos], tmp_path / "out", max_pixels=60 * 87)
    assert [p.photo_id for p in done.photos] == ["a", "b"] and len(done.problems) == 2
    assert "sub/a.jpg' has 94 x 60 pixels, more than the bound of 5220" in done.problems[0]
    again = predict_folder(segmenter, [photos], tmp_path / "out")  # it is no setting of the masks
    assert again.new == 2 and len(again.photos) == 4
