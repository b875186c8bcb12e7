"""`pgnn-geo detect` and `pgnn-geo adjuster` as their user meets them, on a small set."""

import io
import json
import shutil
from contextlib import redirect_stdout

import pytest
import torch

from pgnn_geo.app.cli import main
from pgnn_geo.boxes.box_file import BoxFile
from pgnn_geo.boxes.evaluation import evaluate_boxes, true_boxes
from pgnn_geo.boxes.model_file import load_adjuster, load_detector
from pgnn_geo.datasets import Shapes

pytest.importorskip("cv2.ximgproc")

NETWORK = [
    "--network.backbone=vgg_tiny",
    "--network.weights=null",
    "--network.freeze_stages=0",
    "--network.output_stride=8",
    "--network.pool_size=2",
    "--network.hidden_channels=16",
    "--train.workers=0",
    "--train.sizes=[64]",
]
TINY = [
    *NETWORK,
    "--network.refinements=1",
    "--proposals.side=64",
    "--train.epochs=2",
    "--train.max_proposals=50",
    "--boxes.flip=false",
]


@pytest.fixture(scope="module")
def finished(shapes_root, tmp_path_factory):
    """A run of the command, and what it printed."""
    out = tmp_path_factory.mktemp("detect") / "out"
    arguments = [f"--root={shapes_root}", f"--out={out}", "--eval_split=val", *TINY]
    with redirect_stdout(io.StringIO()) as printed:
        main(["detect", *arguments])
    return out, arguments, printed.getvalue()


def test_it_leaves_a_detector_boxes_and_figures(finished, shapes_root):
    out, _, printed = finished
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model", "metrics.json", "checkpoints", "tensorboard", "proposals"),
        *("boxes.json", "boxes.record.json", "boxes-val.json", "boxes-val.record.json"),
    }
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["supervision"] == ["tags: csv (voc train)"]
    assert load_detector(out / "model").ledger.tags == "csv (voc train)"
    for key, split, name in (("boxes", "train", "boxes.json"), ("eval", "val", "boxes-val.json")):
        photos = Shapes(shapes_root, split, num_images=(20, 10), size=64, with_masks=True)
        boxes = BoxFile(out / name, photos)
        scores = evaluate_boxes(boxes, true_boxes(photos), photos.classes).to_dict()
        found = metrics[key]
        assert found["corloc"] == scores["corloc"] and found["map"] == scores["map"]
        assert found["images"] == len(photos) and 0 < found["proposal_recall"] <= 1
        assert f"{100 * found['corloc']:.1f}" in printed and f"voc {split}" in printed
        for image_id, tags in zip(photos.image_ids, photos.tags, strict=True):
            classes = set(boxes(image_id).classes.tolist())
            if key == "boxes":
                assert classes <= set((tags.nonzero()[:, 0] + 1).tolist())
    assert "tags known" in printed and "tags unknown" in printed and "supervision" in printed


def test_a_finished_run_says_so_and_does_nothing(finished, capsys):
    out, arguments, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    main(["detect", *arguments])
    assert "is done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        main(["detect", *arguments, "--train.lr=1"])
    assert "train.lr: 2e-05 there, 1.0 asked for" in capsys.readouterr().err


def test_a_run_that_was_cut_off_is_completed(finished, tmp_path, capsys):
    done, arguments, _ = finished
    out = shutil.copytree(done, tmp_path / "again")
    shutil.rmtree(out / "model")
    for lost in ("metrics.json", "boxes.json", "boxes-val.json"):
        (out / lost).unlink()
    main(["detect", *arguments, f"--out={out}"])
    assert "epoch 1/2" not in capsys.readouterr().out  # its checkpoint is read
    for name in ("metrics.json", "boxes.json", "boxes-val.json"):
        assert (out / name).read_bytes() == (done / name).read_bytes()


@pytest.fixture(scope="module")
def auxiliary(shapes_root, tmp_path_factory):
    """The boxes of val as a COCO file, and an adjuster trained on them."""
    folder = tmp_path_factory.mktemp("auxiliary")
    photos = Shapes(shapes_root, "val", num_images=(20, 10), size=64, with_masks=True)
    truth = true_boxes(photos, min_pixels=20)
    rows = [
        {"id": n, "image_id": i, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, boxes in enumerate(truth.values())
        for n, (x1, y1, x2, y2) in enumerate(boxes.boxes.tolist())
    ]
    images = [
        {"id": i, "file_name": f"{name}.jpg", "width": 64, "height": 64}
        for i, name in enumerate(truth)
    ]
    path = folder / "drawn.json"
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    images_folder = shapes_root / "JPEGImages"
    arguments = [f"--annotations={path}", f"--images={images_folder}", *NETWORK]
    main(["adjuster", *arguments, f"--out={folder / 'out'}", "--train.epochs=1"])
    return folder / "out" / "model", arguments


def test_what_an_adjuster_moved_was_not_made_from_tags_alone(
    auxiliary, shapes_root, tmp_path, capsys
):
    path, arguments = auxiliary
    assert load_adjuster(path).ledger.to_list() == ["boxes: auxiliary (drawn)"]
    assert not (path.parent / "stems").exists()
    before = path.stat().st_mtime_ns
    main(["adjuster", *arguments, f"--out={path.parent}", "--train.epochs=1"])
    assert path.stat().st_mtime_ns == before
    out = tmp_path / "out"
    options = [f"--adjuster={path}", "--train.epochs=1", f"--cache={tmp_path / 'cache'}"]
    main(["detect", f"--root={shapes_root}", f"--out={out}", *TINY, *options])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["supervision"] == ["tags: csv (voc train)", "boxes: auxiliary (drawn)"]
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    assert BoxFile(out / "boxes.json", photos).ledger.boxes == "auxiliary (drawn)"
    assert "boxes: auxiliary (drawn)" in capsys.readouterr().out.replace("\n", " ")
    assert not (out / "proposals").exists() and (tmp_path / "cache").is_dir()


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_mistakes_are_one_error_before_any_work(shapes_root, auxiliary, tmp_path, capsys):
    out = tmp_path / "out"
    voc = shutil.copytree(shapes_root, tmp_path / "voc")
    (voc / "JPEGImages" / "train_00001.jpg").unlink()
    (voc / "JPEGImages" / "val_00002.jpg").write_bytes(b"torn")
    arguments = ["detect", f"--root={voc}", f"--out={out}", *TINY]
    error = error_of(capsys, *arguments, "--eval_split=val")
    assert "2 problem(s)" in error and "train_00001" in error and "val_00002" in error
    assert "There is no model nowhere" in error_of(capsys, *arguments, "--adjuster=nowhere")
    torch.save({}, tmp_path / "other.pt")
    assert "not a box adjuster" in error_of(
        capsys, *arguments, f"--adjuster={tmp_path / 'other.pt'}"
    )
    error = error_of(capsys, "adjuster", "--annotations=nowhere.json", "--images=.", *NETWORK)
    assert "nowhere.json" in error
    _, given = auxiliary
    empty = [f"--images={tmp_path}", f"--out={tmp_path / 'adjuster'}"]
    error = error_of(capsys, "adjuster", *given, *empty)
    assert "problem(s)" in error and "does not exist" in error
    assert not out.exists() and not (tmp_path / "adjuster").exists()
