import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.segmentation import mean_iou

from pgnn_geo.app.cli import main
from pgnn_geo.datasets import Shapes
from pgnn_geo.io.masks import load_mask
from pgnn_geo.labels.labeller import Labeller
from pgnn_geo.metrics import ConfusionMatrix


def scores(seed: int) -> dict:
    """Scores of a random labelling."""
    torch.manual_seed(seed)
    matrix = ConfusionMatrix(2, ("cat", "dog"))
    truth = torch.randint(0, 3, (40, 40))
    predicted = torch.where(torch.rand(40, 40) < 0.6, truth, torch.randint(0, 3, (40, 40)))
    matrix.update(predicted, truth)
    return matrix.compute().to_dict()


def make_run(folder: Path, lr: float, **more: object) -> Path:
    content = {"split": "train", "seed": 3, "supervision": ["tags: csv", "weights: none"], **more}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    config = {"train": {"lr": lr, "scale": [1.0, 2.0]}, "labels": {"power": None}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def data_of(page: Path) -> dict:
    """The data that a page shows."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_runs_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    cam, pgnn, deeplab = scores(0), scores(1), scores(2)
    make_run(
        Path("runs/full"), 0.1, cam=cam, pgnn=pgnn, segmentation=deeplab, segmentation_split="val"
    )
    make_run(Path("runs/<second>"), 0.2, segmenter=cam, split="val")
    main(["report", "--runs", "runs/full", "runs/<second>", "--out", "pages/report.html"])
    assert "report: pages/report.html" in capsys.readouterr().out
    data = data_of(Path("pages/report.html"))
    assert [run["name"] for run in data["runs"]] == ["runs/full", "runs/<second>"]
    found = [(r["title"], r["photos"], r["scores"]) for run in data["runs"] for r in run["results"]]
    count = cam["images"]
    assert found == [
        ("CAM, labels", f"train, {count}", cam),
        ("P-GNN, labels", f"train, {count}", pgnn),
        ("segmenter", f"val, {count}", deeplab),
        ("segmenter", f"val, {count}", cam),
    ]
    assert data["settings"] == [["train.lr", ["0.1", "0.2"]]]
    assert data["runs"][1]["supervision"] == ["tags: csv", "weights: none"]
    assert data["galleries"] == [] and data["runs"][0]["curves"] == []


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    folder, out = make_run(tmp_path / "run", 0.1), tmp_path / "report.html"
    main(["report", "--runs", str(folder), "--out", str(out)])
    text = out.read_text(encoding="utf-8")
    assert "{{" not in text and "http://www.w3.org/2000/svg" in text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text) and "@import" not in text
    data = data_of(out)
    assert data["runs"][0]["results"] == [] and data["settings"] == []


def test_the_gallery_shows_what_the_run_made(reported: Path, shapes_root: Path) -> None:
    data = data_of(reported / "report.html")
    stage1, stage2 = data["galleries"]
    assert [layer["key"] for layer in stage1["layers"]] == ["cam", "pgnn", "truth"]
    assert [layer["key"] for layer in stage2["layers"]] == ["segmentation", "truth"]
    train = Shapes(shapes_root, "train", num_images=(20, 10), size=64, with_masks=True)
    assert [photo["id"] for photo in stage1["photos"]] == train.image_ids
    assert len(stage2["photos"]) == 10
    for index, photo in enumerate(stage1["photos"]):
        mask = load_mask(reported / "pgnn" / "labels" / f"{photo['id']}.png")
        truth = train.read_mask(index)
        keep = truth != 255
        for label, value in photo["iou"]["pgnn"].items():
            expected = mean_iou(
                (mask == int(label))[None, keep].long(),
                (truth == int(label))[None, keep].long(),
                num_classes=2,
                include_background=False,
                per_class=True,
                input_format="index",
            )
            assert value == round(1000 * float(expected))
        start = reported / stage1["folder"] / str(index)
        with Image.open(f"{start}.jpg") as small:
            assert list(small.size) == photo["size"] == [64, 64]
        with Image.open(f"{start}-pgnn.png") as small:
            assert np.array_equal(np.asarray(small), mask.numpy())
        for label in photo["tags"]:
            assert Path(f"{start}-pgnn-{label}.png").is_file()
    assert (reported / "report" / ".pgnn_geo").is_file()  # never taken for photos


def test_the_default_flow_shows_the_cam_it_began_with(frozen: Path, shapes_root: Path) -> None:
    (gallery,) = data_of(frozen / "report.html")["galleries"]
    layers = {layer["key"]: layer["labels"] for layer in gallery["layers"]}
    assert layers == {"cam": False, "pgnn": True, "truth": True}
    # The CAM by its definition: the classifier of tags at each position, divided by its maximum.
    labeller = Labeller.load(frozen / "pgnn" / "model")
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    bank = labeller.bank(photos, frozen.parent / "features")
    x = bank[torch.arange(20)].float() - labeller.model.propagation.mean.view(-1, 1, 1)
    scores = torch.einsum("kc,mchw->mkhw", labeller.model.evidence, x).relu()
    expected = scores / scores.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)
    maps = np.load(frozen / "pgnn" / "labels" / "cam.npy")
    np.testing.assert_allclose(maps / 255, expected[photos.tags.bool()], atol=0.01)
    row = 0
    for index, photo in enumerate(gallery["photos"]):
        assert photo["there"] == ["truth", "pgnn"] and photo["iou"].keys() == {"pgnn"}
        assert photo["maps"] == {"cam": photo["tags"], "pgnn": photo["tags"]}
        for label in photo["tags"]:
            path = frozen / gallery["folder"] / f"{index}-cam-{label}.png"
            with Image.open(path) as small:
                assert np.array_equal(np.asarray(small), maps[row])
            row += 1


def test_intervals_hold_the_figures(reported: Path) -> None:
    for result in data_of(reported / "report.html")["runs"][0]["results"]:
        low, high = result["interval"]
        assert low < result["scores"]["miou"] < high


def test_curves_and_cost(reported: Path) -> None:
    (run,) = data_of(reported / "report.html")["runs"]
    curves = {(curve["training"], curve["quantity"]): curve["points"] for curve in run["curves"]}
    assert {training for training, _ in curves} == {"cam", "pgnn", "segmentation"}
    assert all(value == value for points in curves.values() for _, value in points)
    stages = {stage["stage"]: stage for stage in run["cost"]}
    assert {"train cam", "train pgnn", "label pgnn/labels", "train segmenter"} <= stages.keys()
    for stage in stages.values():
        assert stage["seconds"] > 0 and stage["disk"] > 0
        assert 1e7 < stage["peak_memory"] < 1e12


def test_explained_edges_are_those_of_the_sample(reported: Path) -> None:
    (gallery, _) = data_of(reported / "report.html")["galleries"]
    script = (reported / gallery["folder"] / "explained.js").read_text()
    entries = json.loads(script.split("] = ")[1].rstrip(";\n"))
    assert {entry["kind"] for entry in entries} == {"propagation", "attention"}
    assert gallery["explained"] == [[entry["images"][0], entry["label"]] for entry in entries]
    tags = {photo["id"]: photo["tags"] for photo in gallery["photos"]}
    assert all(entry["label"] in tags[image] for entry in entries for image in entry["images"])


def test_review_gives_confidences(reported: Path, tmp_path: Path) -> None:
    run = shutil.copytree(reported, tmp_path / "run")
    data = data_of(run / "report.html")
    photo = data["galleries"][0]["photos"][0]
    name = data["galleries"][0]["classes"][photo["tags"][0] - 1]
    review = run / "pgnn" / "labels" / "review.csv"
    review.write_text(f"image,class,confidence\n{photo['id']},{name},0.25\n")
    main(["report", "--runs", str(run), "--out", str(run / "report.html")])
    photos = data_of(run / "report.html")["galleries"][0]["photos"]
    assert photos[0]["sure"]["pgnn"] == {str(photo["tags"][0]): 250}
    assert photos[1]["sure"]["pgnn"] == {}


def test_a_training_of_stage_2_has_a_report_of_its_own(reported: Path, tmp_path: Path) -> None:
    main(["report", "--runs", f"{reported}/segmentation", "--out", f"{tmp_path}/page.html"])
    data = data_of(tmp_path / "page.html")
    (gallery,) = data["galleries"]
    assert gallery["title"] == "val" and len(gallery["photos"]) == 10
    assert [layer["key"] for layer in gallery["layers"]] == ["segmenter", "truth"]
    assert all(photo["iou"]["segmenter"] for photo in gallery["photos"])


def test_photos_that_are_gone_are_said_to_be(reported: Path, tmp_path: Path) -> None:
    run = shutil.copytree(reported, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["root"] = str(tmp_path / "moved")
    (run / "config.json").write_text(json.dumps(config))
    main(["report", "--runs", str(run), "--out", str(tmp_path / "page.html")])
    data = data_of(tmp_path / "page.html")
    assert data["galleries"] == [] and "cannot be shown" in data["notes"][0]
    assert len(data["runs"][0]["results"]) == 3


def test_a_page_ends_in_html(tmp_path: Path, capsys) -> None:
    folder = make_run(tmp_path / "run", 0.1)
    with pytest.raises(SystemExit, match="2"):
        main(["report", "--runs", str(folder), "--out", str(tmp_path / "report.md")])
    assert "ends in .html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, "", "holds no finished run"),
        ("metrics.json", "{", "cannot be read"),
        ("metrics.json", '{"boxes": {}}', "is not of 'run', 'demo' or 'segment'"),
    ],
)
def test_folders_that_are_no_runs(tmp_path: Path, capsys, name, content, message) -> None:
    folder = make_run(tmp_path / "run", 0.1)
    if name is None:
        (folder / "metrics.json").unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main(["report", "--runs", str(folder), "--out", str(tmp_path / "report.html")])
    assert message in capsys.readouterr().err and not (tmp_path / "report.html").exists()
