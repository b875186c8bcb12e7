import json
import os
import shutil
import subprocess
import sys
import time

import forked
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pgnn_geo.app.cli import main
from pgnn_geo.datasets import load_photo
from pgnn_geo.errors import InputError
from pgnn_geo.inference import predict
from pgnn_geo.inference.predict import PredictConfig, predict_folder
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io import read_coco
from pgnn_geo.io.files import RESULT_MARK
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import load_mask, voc_palette
from pgnn_geo.labels import build_refinement
from pgnn_geo.nn import DeepLabV2

CLASSES = ("cat", "dog", "cow")


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    network = DeepLabV2("vgg_tiny", num_classes=3, weights=None, hidden_channels=16).eval()
    for branch in network.head.branches:
        nn.init.normal_(branch[-1].weight, std=0.5)
    return Segmenter(network, CLASSES, SupervisionLedger(tags="csv"))


@pytest.fixture(scope="module")
def model(segmenter, tmp_path_factory):
    return segmenter.save_pretrained(tmp_path_factory.mktemp("model") / "segmenter")


def picture(seed, size=(80, 60)):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.jpg", "b.png", "sub/a.jpg", "sub/c.jpg")):
        picture(seed, (80 + 7 * seed, 60)).save(folder / name)
    return folder


def files(folder):
    found = (path for path in folder.rglob("*.*") if path.name != RESULT_MARK)
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found}


def test_a_folder(segmenter, photos, tmp_path):
    out = tmp_path / "out"
    done = predict_folder(segmenter, [photos], out, overlays=True, probabilities=True)
    assert [p.photo_id for p in done.photos] == ["a", "b", "sub/a", "sub/c"]
    assert done.new == 4 and not done.problems
    for photo in done.photos:
        image = load_photo(photo.path)
        expected = segmenter.predict(image)
        with Image.open(out / "masks" / f"{photo.photo_id}.png") as mask:
            assert mask.mode == "P" and mask.size == (image.shape[2], image.shape[1])
            assert mask.getpalette() == voc_palette().ravel().tolist()
        label = load_mask(out / "masks" / f"{photo.photo_id}.png")
        assert torch.equal(label, segmenter.label(image))
        assert len(label.unique()) > 1
        with np.load(out / "probabilities" / f"{photo.photo_id}.npz") as arrays:
            found = torch.from_numpy(arrays["probabilities"])
        assert found.dtype == torch.half and torch.equal(found, expected.half())
        painted = load_photo(out / "overlays" / f"{photo.photo_id}.png")
        assert painted.shape == image.shape
        assert torch.equal(painted[:, label == 0], image[:, label == 0])
        assert not torch.equal(painted[:, label > 0], image[:, label > 0])
    record = json.loads((out / "predict.json").read_text())
    assert record["supervision"]["tags"] == "csv" and record["classes"] == list(CLASSES)


def test_a_photo_that_cannot_be_read_is_reported_at_the_end(segmenter, photos, tmp_path):
    data = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(data[: len(data) // 2])
    (photos / "notes.jpg").write_text("no photo")
    (photos / "empty.png").touch()
    out = tmp_path / "out"
    done = predict_folder(segmenter, [photos], out)
    assert [p.photo_id for p in done.photos] == ["b", "sub/a", "sub/c"] and done.new == 3
    assert len(done.problems) == 3
    for name, problem in zip(("a.jpg", "empty.png", "notes.jpg"), done.problems, strict=True):
        assert f"'{photos / name}' cannot be decoded" in problem
    assert not (out / "masks" / "a.png").exists()
    (photos / "a.jpg").write_bytes(data)  # mended, so a second call does it
    again = predict_folder(segmenter, [photos], out)
    assert again.new == 1 and (out / "masks" / "a.png").is_file()


def test_what_is_there_is_not_done_again(segmenter, photos, tmp_path):
    out = tmp_path / "out"
    predict_folder(segmenter, [photos / "sub", photos / "a.jpg"], out)
    first = files(out)
    calls = []
    hook = segmenter.network.register_forward_hook(lambda *_: calls.append(1))
    try:
        assert predict_folder(segmenter, [photos], out).new == 1  # b.png came later
        assert len(calls) == 2 and first.items() <= files(out).items()
        second = files(out)
        assert predict_folder(segmenter, [photos], out).new == 0
        assert len(calls) == 2 and files(out) == second
        predict_folder(segmenter, [photos], out, overlays=True)
        assert second.items() <= files(out).items() and len(files(out)) == len(second) + 4
    finally:
        hook.remove()


def test_other_settings_do_not_mix(segmenter, photos, tmp_path):
    out = tmp_path / "out"
    predict_folder(segmenter, [photos], out)
    before = files(out)
    other = Segmenter(segmenter.network, CLASSES, segmenter.ledger, side=64)
    for message, call in {
        r"settings.flip: True there, False": (segmenter, [photos], PredictConfig(flip=False)),
        r"settings.side: None there, 64": (other, [photos], None),
        r"photos: .*photos' there, .*sub' asked": (segmenter, [photos / "sub"], None),
    }.items():
        with pytest.raises(InputError, match=message):
            predict_folder(call[0], call[1], out, call[2])
    weight = segmenter.network.head.branches[0][-1].bias
    with torch.no_grad():
        weight += 1
        try:
            with pytest.raises(InputError, match="model: "):
                predict_folder(segmenter, [photos], out)
        finally:
            weight -= 1
    assert files(out) == before


def test_modes_and_orientation(segmenter, tmp_path):
    """Grey, palette and transparent photos; a photo lying on its side is turned upright."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    upright = picture(3)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees
    lying.save(folder / "lying.png", exif=exif)
    upright.save(folder / "upright.png")
    upright.convert("L").save(folder / "grey.png")
    upright.convert("L").convert("RGB").save(folder / "grey_rgb.png")
    upright.quantize(16).save(folder / "palette.png")
    upright.quantize(16).convert("RGB").save(folder / "palette_rgb.png")
    clear = upright.copy()
    clear.putalpha(100)
    clear.save(folder / "rgba.png")
    upright.convert("1").save(folder / "bits.png")
    done = predict_folder(segmenter, [folder], out, overlays=True)
    assert not done.problems and done.new == 8
    masks = {p.photo_id: load_mask(out / "masks" / f"{p.photo_id}.png") for p in done.photos}
    assert {tuple(mask.shape) for mask in masks.values()} == {(60, 80)}
    for first, second in {
        ("lying", "upright"),
        ("rgba", "upright"),
        ("grey", "grey_rgb"),
        ("palette", "palette_rgb"),
    }:
        assert torch.equal(masks[first], masks[second]), first
    assert load_photo(out / "overlays" / "lying.png").shape == (3, 60, 80)


@pytest.mark.parametrize("refine", ["par", "crf"])
def test_refinement(segmenter, photos, tmp_path, refine):
    if refine == "crf":
        pytest.importorskip("pydensecrf")
    out, config = tmp_path / "out", PredictConfig(refine=refine, max_side=64)
    predict_folder(segmenter, [photos / "a.jpg"], out, config)
    label = load_mask(out / "masks" / "a.png")
    image = load_photo(photos / "a.jpg")
    plain = segmenter.label(image, max_side=64)
    assert label.shape == (60, 80) and not torch.equal(label, plain)
    if refine == "par":
        small = predict.shrink(image, 64)
        maps = segmenter.views(image, max_side=64).maps[0]
        refined = build_refinement("par")(small[None] / 255, maps[None])
        full = nn.functional.interpolate(refined, (60, 80), mode="bilinear", align_corners=False)
        assert (full[0].argmax(0) == label).float().mean() > 0.999


def test_tags_restrict_the_classes(segmenter, photos, tmp_path):
    csv = tmp_path / "tags.csv"
    csv.write_text("image,labels\na.jpg,cat\nb,dog\nsub/a,cat cow\nsub/c.jpg,\n")
    done = predict_folder(segmenter, [photos], tmp_path / "out", tags=csv, probabilities=True)
    allowed = {"a": {0, 1}, "b": {0, 2}, "sub/a": {0, 1, 3}, "sub/c": {0}}
    for photo in done.photos:
        label = load_mask(tmp_path / "out" / "masks" / f"{photo.photo_id}.png")
        assert set(label.unique().tolist()) <= allowed[photo.photo_id]
    with pytest.raises(InputError, match="tags: "):
        predict_folder(segmenter, [photos], tmp_path / "out")


def test_few_photos_are_held_at_once(segmenter, photos, tmp_path, monkeypatch):
    """Photos are decoded ahead, but never more pixels than the bound, one photo aside."""
    monkeypatch.setattr(predict, "_PIXELS_AHEAD", 12_000)  # two photos
    held, most, read = [0], [0], predict._Steps.read

    def counted(self, photo):
        held[0] += 1
        most[0] = max(most[0], held[0])
        return read(self, photo)

    def used(self, photo, tags):
        time.sleep(0.02)  # time enough to decode all of them
        held[0] -= 1
        return predicted(self, photo, tags)

    predicted = predict._Steps.predict
    monkeypatch.setattr(predict._Steps, "read", counted)
    monkeypatch.setattr(predict._Steps, "predict", used)
    for number in range(8):
        shutil.copy(photos / "a.jpg", photos / f"more-{number}.jpg")
    assert predict_folder(segmenter, [photos], tmp_path / "out").new == 12
    assert most[0] == 2 and held[0] == 0


def test_bad_settings(segmenter, photos, tmp_path):
    with pytest.raises(InputError, match="'scales'"):
        PredictConfig(scales=())
    with pytest.raises(InputError, match="unknown refinement 'bilateral'"):
        PredictConfig(refine="bilateral")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        predict_folder(segmenter, [photos], tmp_path / "file" / "out")


def test_the_command(model, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_text("no photo")
    out = tmp_path / "out"
    words = ["predict", f"--checkpoint={model}", "--out", str(out), "--overlays"]
    words += ["--photos", str(photos / "a.jpg"), str(photos / "sub"), str(photos / "broken.jpg")]
    words += ["--scales", "0.5", "1", "--max-side", "64"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--coco", str(out / "masks.json"), "--export", "coco,cityscapes"])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert f"problem: photo '{photos / 'broken.jpg'}' cannot be decoded" in said
    names = {"a.png", "sub/a.png", "sub/c.png"}
    assert set(files(out / "masks")) == set(files(out / "overlays")) == names
    read = read_coco(out / "masks.json", CLASSES)
    assert [name for name, _ in read] == ["a", "a", "c"]
    exported = out / "exports" / "coco" / "annotations.json"
    assert exported.read_bytes() == (out / "masks.json").read_bytes()
    ids = out / "exports" / "cityscapes" / "gtFine" / "train"
    for name in names:
        with Image.open(ids / f"{name[:-4]}_gtFine_labelTrainIds.png") as image:
            assert np.array_equal(np.asarray(image), load_mask(out / "masks" / name).numpy())
    settings = json.loads((out / "predict.json").read_text())["settings"]
    assert settings["scales"] == [0.5, 1.0] and settings["max_side"] == 64


def test_submission_to_the_voc_server(model, segmenter, photos, tmp_path, capsys):
    options = [f"--photos={json.dumps([str(photos / 'a.jpg')])}", f"--out={tmp_path / 'out'}"]
    main(["predict", f"--checkpoint={model}", *options, "--submission"])
    submitted = tmp_path / "out/results/VOC2012/Segmentation/comp6_test_cls/a.png"
    own = load_mask(tmp_path / "out" / "masks" / "a.png")
    table = torch.tensor([0, 8, 12, 10], dtype=torch.uint8)  # cat, dog and cow in VOC
    assert torch.equal(load_mask(submitted), table[own.long()])
    other = Segmenter(segmenter.network, ("cat", "unicorn", "cow"), segmenter.ledger)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit) as stop:
        main(["predict", f"--checkpoint={tmp_path / 'other'}", *options, "--submission"])
    assert stop.value.code == 2 and "not VOC classes" in capsys.readouterr().err


def test_errors_for_people(model, photos, tmp_path, capsys):
    for options, words in (
        ([f"--checkpoint={tmp_path}/none", f"--photos={photos}"], "no segmenter folder"),
        ([f"--checkpoint={model}", "--photos", str(tmp_path / "none")], "no photos at"),
        ([f"--checkpoint={model}", "--photos", str(photos), "--scales", "0"], "'scales'"),
        ([f"--checkpoint={model}", f"--photos={photos}", "--device=abacus"], "device 'abacus'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["predict", f"--out={tmp_path / 'out'}", *options])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and words in error and "Traceback" not in error


def test_a_killed_process_is_continued_where_it_was(segmenter, model, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for number in range(12):
        picture(number, (300, 200)).save(folder / f"{number:02}.jpg")
    own = Segmenter.from_pretrained(model)
    process = forked.start(predict_folder, own, [folder], out, PredictConfig((1, 2)))
    deadline = time.monotonic() + 100
    while len(list(out.glob("masks/[0-9]*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()
    first = {name: when for name, when in files(out).items() if not name.startswith("masks/.")}
    assert 4 <= len(first) < 13, "killed too late or too early"
    done = predict_folder(segmenter, [folder], out, PredictConfig((1, 2)))
    assert len(done.photos) == 12 and done.new == 13 - len(first)
    assert first.items() <= files(out).items()
    assert all(load_mask(out / "masks" / f"{n:02}.png").shape == (200, 300) for n in range(12))


HUGE = """
import resource, sys
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.inference.predict import predict_folder

segmenter = Segmenter.from_pretrained(sys.argv[1])
peaks = []
for name in ("large", "huge"):  # the first fills max_side as well
    done = predict_folder(segmenter, [f"{sys.argv[2]}/{name}.jpg"], f"{sys.argv[2]}/{name}",
                          overlays=True)
    assert done.new == 1, done
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
def test_a_huge_photo_stays_within_the_bound(tmp_path):
    torch.manual_seed(0)
    network = DeepLabV2("vgg_tiny", num_classes=20, weights=None, hidden_channels=16)
    names = tuple(str(k) for k in range(20))
    model = Segmenter(network, names, SupervisionLedger()).save_pretrained(tmp_path / "model")
    picture(0, (1024, 819)).save(tmp_path / "large.jpg")
    picture(0, (10_000, 8_000)).save(tmp_path / "huge.jpg")
    result = subprocess.run(
        [sys.executable, "-c", HUGE, str(model), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 15 * 80_000_000  # maps of 21 labels alone would take 84 each
    for name in ("masks", "overlays"):
        with Image.open(tmp_path / "huge" / name / "huge.png") as image:
            assert image.size == (10_000, 8_000)
