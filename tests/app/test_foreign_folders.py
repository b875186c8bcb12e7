"""Folders as people bring them: `doctor`, `run` and `predict` say the same of each."""

import errno
import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgnn_geo.app import labelling
from pgnn_geo.app.cli import main
from pgnn_geo.datasets import VOC2012
from pgnn_geo.io.masks import load_mask, save_mask

NETWORK = ["--network.backbone=vgg_tiny", "--network.weights=null"]
RUN = [
    *NETWORK,
    "--network.freeze_stages=0",
    "--train.size=32",
    "--train.epochs=1",
    "--train.completion_epochs=0",
    "--train.workers=0",
    "--maps.size=32",
    "--segment=off",
    "--recipe=trained",
    "--baseline=true",
    "--labels.refine=none",
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcd":
        pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 30)).save(root / f"{name}.jpg")
    tag(root, a="cat", b="dog", c="cat dog", d="cat")
    return root


def tag(root: Path, **rows: str) -> None:
    lines = ["image,labels", *(f"{name},{labels}" for name, labels in rows.items())]
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def doctor(root: Path, *options: str) -> None:
    main(["doctor", "--data=folder", f"--root={root}", *NETWORK, *options])


def run(root: Path, out: Path, *options: str) -> dict[str, object]:
    main(["run", "--data=folder", f"--root={root}", f"--out={out}", *RUN, *options])
    metrics: dict[str, object] = json.loads((out / "metrics.json").read_text())
    return metrics


def labels_of(out: Path) -> list[str]:
    folder = out / "pgnn" / "labels"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_masks_below_the_photos(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are no photos whether they are asked for or not, and are measured where they are."""
    for name in ("a", "c", "d"):
        save_mask(photos / "masks" / f"{name}.png", np.eye(30, 40, dtype=np.uint8))
    doctor(photos, f"--masks={photos / 'masks'}")
    metrics = run(photos, tmp_path / "run", f"--masks={photos / 'masks'}")
    assert metrics["images"] == 4 and metrics["pgnn"]["images"] == 3  # type: ignore[index]
    printed = capsys.readouterr().out
    counted, done = printed.split("no problem found")  # by `doctor` already
    assert "3 of 4 photos have true masks" in counted and "3 of 4 photos have true masks" in done
    assert "pseudo-labels, photos, 3 images" in done
    doctor(photos)
    assert f"'{photos / 'masks'}' holds label images" in capsys.readouterr().out
    command = ["label", f"--checkpoint={tmp_path / 'run' / 'cam' / 'model'}", "--data=folder"]
    main([*command, f"--root={photos}", f"--out={tmp_path / 'labels'}", "--maps.size=32"])
    assert sorted(p.name for p in (tmp_path / "labels").glob("*.png")) == [
        *("a.png", "b.png", "c.png", "d.png")
    ]
    with pytest.raises(SystemExit):  # none of them is named as a photo
        doctor(photos, f"--masks={tmp_path / 'run' / 'overlays'}")
    assert "holds no mask of a photo" in capsys.readouterr().out.replace("\n", "")


def test_a_run_in_the_folder_of_its_photos(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it leaves is no photo: for itself, once more, for another run, for `doctor`."""
    monkeypatch.chdir(photos)
    command = ["run", "--data=folder", "--root=.", *RUN]
    main(command)
    assert labels_of(Path("runs/run")) == ["a.png", "b.png", "c.png", "d.png"]
    for lost in ("metrics.json", "pgnn/labels/labels.json"):
        Path("runs/run", lost).unlink()
    main(command)
    main([*command, "--out=second"])
    main([*command, "--out=."])  # among the photos themselves
    main([*command, "--out=third"])
    for out in ("second", ".", "third"):
        assert labels_of(Path(out)) == ["a.png", "b.png", "c.png", "d.png"]
    capsys.readouterr()
    doctor(photos)
    assert "no problem found" in capsys.readouterr().out


def test_photos_that_come_after_a_run_is_done_are_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(photos, tmp_path / "run")
    capsys.readouterr()
    run(photos, tmp_path / "run")
    printed = " ".join(capsys.readouterr().out.split())
    assert "is done" in printed and "note:" not in printed
    shutil.copy(photos / "a.jpg", photos / "e.jpg")
    tag(photos, a="cat", b="dog", c="cat dog", d="cat", e="dog")
    run(photos, tmp_path / "run")
    printed = " ".join(capsys.readouterr().out.split())
    assert "was done without photos that are there now: e (1 in all)" in printed
    (photos / "labels.csv").unlink()  # what is done is shown all the same
    run(photos, tmp_path / "run")


def test_a_class_background_is_settled_before_any_work(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tag(photos, a="cat background", b="dog", c="background cat dog", d="cat")
    run(photos, tmp_path / "run")
    assert "the tag 'background' is left out" in capsys.readouterr().out
    for command in ("doctor", "run"):
        out = [] if command == "doctor" else [f"--out={tmp_path / 'other'}", *RUN]
        options = ["--data=folder", f"--root={photos}", "--classes=background,cat,dog"]
        with pytest.raises(SystemExit):
            main([command, *options, *(out or NETWORK)])
        printed = capsys.readouterr()
        assert "'background' (1 in all) cannot be a class" in printed.out + printed.err
    assert not (tmp_path / "other").exists()


def test_names_that_a_terminal_or_a_file_system_could_trip_over(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Markup in class names, file names of 255 bytes, and of another Unicode form than the CSV."""
    long, umlaut = "x" * 251, unicodedata.normalize("NFD", "größe")
    (photos / "a.jpg").rename(photos / f"{long}.jpg")
    (photos / "b.jpg").rename(photos / f"{umlaut}.jpg")
    (photos / "c.jpg").rename(photos / "[red]c.jpg")
    tag(photos, **{long: "[/cat]", "größe": "dog", "[red]c": "[/cat] dog", "d": ":dog:"})
    for name, size in ((long, (30, 40)), ("größe", (30, 40))):
        save_mask(tmp_path / "masks" / f"{name}.png", np.eye(*size, dtype=np.uint8))
    doctor(photos)
    run(photos, tmp_path / "run", f"--masks={tmp_path / 'masks'}")
    assert labels_of(tmp_path / "run") == sorted(
        f"{name}.png" for name in (long, umlaut, "[red]c", "d")
    )
    printed = capsys.readouterr().out
    assert "[/cat]" in printed and ":dog:" in printed


def test_photos_behind_links_and_of_every_shape(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    shutil.move(photos / "a.jpg", tmp_path / "disk" / "a.jpg")
    (photos / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(photos)
    Image.new("RGB", (700, 1), "red").save(photos / "b.jpg")
    Image.new("RGB", (1, 1), "blue").save(photos / "c.jpg")
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(photos / "d.png")
    (photos / "d.jpg").unlink()
    doctor(photos)
    run(photos, tmp_path / "run")
    assert labels_of(tmp_path / "run") == ["b.png", "c.png", "d.png", "linked/a.png"]
    for name, size in {"b": (1, 700), "c": (1, 1), "linked/a": (30, 40)}.items():
        path = tmp_path / "run" / "pgnn" / "labels" / f"{name}.png"
        assert load_mask(path).shape == size
    with Image.open(tmp_path / "run" / "overlays" / "sheet-1.png") as sheet:
        assert max(sheet.size) < 3000


def test_voc_layout_without_sbd(
    shapes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train_aug` names more photos than there are masks of: those that are there are measured."""
    root = shutil.copytree(shapes_root, tmp_path / "voc")
    (root / "shapes.json").unlink()
    lists = root / "ImageSets" / "Segmentation"
    ids = (lists / "train.txt").read_text().split()[:6]
    (lists / "train_aug.txt").write_text("\n".join(ids))
    (root / "SegmentationClass" / f"{ids[0]}.png").unlink()
    (root / "SegmentationClass" / f"{ids[3]}.png").unlink()
    data = [f"--root={root}", "--split=train_aug"]
    main(["doctor", *data, *NETWORK])
    main(["run", *data, f"--out={tmp_path / 'run'}", *RUN])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["images"] == 6 and metrics["cam"]["images"] == 4
    assert "4 of 6 photos have true masks" in capsys.readouterr().out
    labels = tmp_path / "run" / "pgnn" / "labels"
    main(["evaluate", f"--labels={labels}", *data, f"--out={tmp_path / 'scores.json'}"])
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 4
    assert len(VOC2012(root, "train_aug", with_masks=True)) == 6


def test_doctor_says_how_a_table_was_read(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tag(photos, a='"cat, dog"', b="dog", c="Cat", d='"cat,dog"')
    doctor(photos)
    printed = capsys.readouterr().out
    assert printed.count("labels are read as separated by ','") == 1  # once, however often read
    assert "these are read as different classes: 'Cat' and 'cat'" in printed
    assert "no problem found" in printed


def test_a_name_too_long_for_the_output_stops_no_other_label(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on file systems that allow shorter names than that of the photos."""
    save = labelling.save_mask

    def short(path: Path, mask: object) -> None:
        if path.name == "b.png":
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(path))
        save(path, mask)  # type: ignore[arg-type]

    monkeypatch.setattr(labelling, "save_mask", short)
    with pytest.raises(SystemExit):
        run(photos, tmp_path / "run")
    assert "rename these photos: b (1 in all)" in capsys.readouterr().err
    labels = tmp_path / "run" / "cam" / "labels"
    assert sorted(p.name for p in labels.glob("*.png")) == ["a.png", "c.png", "d.png"]
    assert not (labels / "labels.json").exists()
    monkeypatch.undo()
    run(photos, tmp_path / "run")
    assert labels_of(tmp_path / "run") == ["a.png", "b.png", "c.png", "d.png"]


def test_exports_of_run_and_label(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written also where the run is done already; a wrong name is settled before any work."""
    with pytest.raises(SystemExit):
        run(photos, tmp_path / "run", "--export=coco,yolo8")
    assert "unknown export 'yolo8': want one of voc, coco" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    run(photos, tmp_path / "run")
    run(photos, tmp_path / "run", "--export=voc,cvat")
    exports = tmp_path / "run" / "exports"
    for name in "abcd":
        path = Path("pgnn", "labels", f"{name}.png")
        same = exports / "voc" / "SegmentationClass" / path.name
        assert same.read_bytes() == (tmp_path / "run" / path).read_bytes()
    assert (exports / "cvat" / "segmentation_mask.zip").is_file()
    command = ["label", f"--checkpoint={tmp_path / 'run' / 'pgnn' / 'model'}", "--data=folder"]
    command += [f"--root={photos}", f"--out={photos / 'labels'}", "--maps.size=32", "--export=voc"]
    main(command)
    exported = photos / "labels" / "exports" / "voc" / "SegmentationClass"
    assert exported.joinpath("a.png").read_bytes() == (photos / "labels" / "a.png").read_bytes()
    doctor(photos)  # none of these is a photo
    assert "no problem found" in capsys.readouterr().out


def test_more_classes_than_labels_are_settled_before_any_work(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = " ".join(f"class{k}" for k in range(255))
    tag(photos, a=names, b="class1", c="class2", d="class3")
    with pytest.raises(SystemExit):
        run(photos, tmp_path / "run")
    assert "255, but label images tell at most 254" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_photo_that_is_too_large_says_what_to_do(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--max_pixels=1000"]
    with pytest.raises(SystemExit):
        run(photos, tmp_path / "run", *options)
    error = capsys.readouterr().err
    assert "a.jpg' has 40 x 30 pixels, more than the bound of 1000" in error
    with pytest.raises(SystemExit):
        doctor(photos, *options)
    assert "the bound of 1000" in capsys.readouterr().out
    doctor(photos, "--max_pixels=1200")
