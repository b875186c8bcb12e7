"""`pgnn-geo segment --drawn`: scribbles, masks and boxes of some photos, drawn by people."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pgnn_geo.app.cli import main
from pgnn_geo.datasets import Shapes
from pgnn_geo.io.masks import IGNORE, load_mask, save_mask

TINY = [
    "--network.backbone=vgg_tiny",
    "--network.weights=null",
    "--network.hidden_channels=8",
    "--train.freeze_stages=1",
    "--train.size=64",
    "--train.crop=64",
    "--train.epochs=1",
    "--train.workers=0",
    "--eval_split=null",
]


@pytest.fixture(scope="module")
def photos(shapes_root: Path) -> Shapes:
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64, with_masks=True)


@pytest.fixture(scope="module")
def labels(photos: Shapes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that call all foreground class 1, and the left half of the background, too."""
    folder = tmp_path_factory.mktemp("labels")
    for i, name in enumerate(photos.image_ids):
        mask = photos.read_mask(i)
        one = ((mask > 0) & (mask != IGNORE)).to(torch.uint8)
        one[:, :32] = 1
        save_mask(folder / f"{name}.png", one)
    return folder


def boxes_of(photos: Shapes, numbers: list[int]) -> dict[str, Any]:
    """COCO records with a box around each class of some photos."""
    annotations: list[dict[str, Any]] = []
    for i in numbers:
        mask = photos.read_mask(i)
        for k in set(mask.unique().tolist()) - {0, IGNORE}:
            rows, columns = (mask == k).nonzero().unbind(1)
            x, y = int(columns.min()), int(rows.min())
            size = [int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": k, "bbox": [x, y, *size]}
            )
    return {
        "images": [{"id": i, "file_name": f"there/{photos.image_ids[i]}.jpg"} for i in numbers],
        "categories": [{"id": k, "name": name} for k, name in enumerate(photos.classes, 1)],
        "annotations": annotations,
    }


def segment(labels: Path, root: Path, out: Path, *options: str) -> dict[str, Any]:
    main(["segment", f"--labels={labels}", f"--root={root}", f"--out={out}", *TINY, *options])
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def test_scribbles_take_the_place_of_labels(
    photos: Shapes, labels: Path, shapes_root: Path, tmp_path: Path
) -> None:
    strokes = torch.full((64, 64), IGNORE, dtype=torch.uint8)
    strokes[10], strokes[20:24, :40] = 0, 2
    (tmp_path / "strokes").mkdir()
    save_mask(tmp_path / "strokes" / f"{photos.image_ids[3]}.png", strokes)
    metrics = segment(labels, shapes_root, tmp_path / "out", f"--drawn={tmp_path / 'strokes'}")
    (written,) = (tmp_path / "out" / "labels" / "drawn").glob("*.png")
    assert written.stem == photos.image_ids[3]
    result, before = load_mask(written), load_mask(labels / written.name)
    assert (result[10] == 0).all() and (result[20:24, :40] == 2).all()
    assert torch.equal(result[strokes == IGNORE], before[strokes == IGNORE])
    assert "drawn in 1 photos (strokes)" in str(metrics["supervision"])
    assert metrics["drawn"] == str(tmp_path / "strokes")


def test_boxes_hold_labels(photos: Shapes, labels: Path, shapes_root: Path, tmp_path: Path) -> None:
    numbers = [0, 5, 11]
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(boxes_of(photos, numbers)))
    metrics = segment(labels, shapes_root, tmp_path / "out", f"--drawn={file}")
    folder = tmp_path / "out" / "labels" / "drawn"
    assert {path.stem for path in folder.glob("*.png")} == {photos.image_ids[i] for i in numbers}
    for i in numbers:
        result, mask = load_mask(folder / f"{photos.image_ids[i]}.png"), photos.read_mask(i)
        outside = torch.ones(64, 64, dtype=torch.bool)
        for each in boxes_of(photos, [i])["annotations"]:
            x, y, width, height = each["bbox"]
            outside[y : y + height, x : x + width] = False
        assert (result[outside] == 0).all() and outside.any()
        # Inside, every label is kept or left open: the left half is labelled all over.
        half = ~outside[:, :32]
        assert (result[:, :32][half] != 0).all()
        if 1 not in mask:  # all labels are 1: none is of the class of a box
            assert set(result.unique().tolist()) <= {0, IGNORE}
    assert "boxes: drawn in 3 photos (boxes.json)" in str(metrics["supervision"])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["segment", *arguments])
    assert stop.value.code
    return " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_used_is_said_before_work(
    photos: Shapes,
    labels: Path,
    shapes_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    start = [f"--labels={labels}", f"--root={shapes_root}", f"--out={out}", *TINY]
    folder, file = tmp_path / "drawn", tmp_path / "boxes.json"
    folder.mkdir()
    assert "there is no PNG file" in error_of(capsys, *start, f"--drawn={folder}")
    name = photos.image_ids[0]
    save_mask(folder / f"{name}.png", torch.full((64, 64), 9, dtype=torch.uint8))
    error = error_of(capsys, *start, f"--drawn={folder}")
    assert f"{name}.png" in error and "has labels 9" in error
    save_mask(folder / f"{name}.png", torch.zeros(5, 64, dtype=torch.uint8))
    assert "is 64 x 5, its photo 64 x 64" in error_of(capsys, *start, f"--drawn={folder}")
    shutil.move(folder / f"{name}.png", folder / "other.png")
    assert "of no photo: other" in error_of(capsys, *start, f"--drawn={folder}")
    assert "want a folder of label images or" in error_of(capsys, *start, f"--drawn={file}")

    content = boxes_of(photos, [0])
    for change, said in (
        ({"categories": [{"id": k, "name": "zebra"} for k in range(1, 6)]}, "zebra"),
        ({"annotations": [{**content["annotations"][0], "bbox": [0, 0, 0, 5]}]}, "annotation 0"),
        ({"annotations": [{"id": 7, "image_id": 0, "category_id": 1}]}, "'bbox'"),
        ({"annotations": []}, "has no box of a class"),
        ({"annotations": None}, "is damaged"),
    ):
        file.write_text(json.dumps({**content, **change}))
        error = error_of(capsys, *start, f"--drawn={file}")
        assert said in error and "boxes.json" in error
    file.write_text("{}")
    assert "is not COCO JSON" in error_of(capsys, *start, f"--drawn={file}")
    file.write_text(json.dumps(content))
    error = error_of(capsys, *start, f"--drawn={file}", "--mutual=tags")
    assert "want one of the two" in error
    error = error_of(capsys, *start, f"--drawn={file}", "--labels=truth")
    assert "drawn is for pseudo-labels" in error
    assert not out.exists()
