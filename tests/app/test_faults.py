"""What goes wrong half-way ends with one line; what is done stands, and the command goes on."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgnn_geo.app import labelling, pipeline
from pgnn_geo.app.cli import main
from pgnn_geo.features import frozen

RUN = [
    *("--network.backbone=vgg_tiny", "--features.size=64", "--segment=off", "--baseline=true"),
    *("--evidence.iterations=10", "--evidence.positions=512", "--labels.refine=none"),
]


def files(folder: Path) -> dict[str, bytes]:
    """Every file but the costs, which are measured, and the page, which shows them."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {n: p.read_bytes() for n, p in found.items() if n not in ("cost.json", "report.html")}


@pytest.fixture(scope="module")
def whole(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run writes that nothing happens to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    main(["run", f"--root={shapes_root}", f"--out={out}", *RUN])
    return files(out)


def failed(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that ends with status 2; return the one line that it says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(command)
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(said) == 1, said
    return said[0]


def test_a_disk_that_fills_up_at_any_file(
    shapes_root: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["run", f"--root={shapes_root}", f"--out={tmp_path / 'run'}", *RUN]
    for room in sorted([0, *random.Random(0).sample(range(1, 40), 4)]):
        left = iter(range(room))

        def fsync(handle: int, left: Any = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            line = failed(command, capsys)
        assert line.startswith("pgnn-geo: error:") and "No space left on device" in line
        assert str(tmp_path / "run") in line
    main(command)
    assert files(tmp_path / "run") == whole


def test_a_photo_that_vanishes_while_it_is_needed(
    shapes_root: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "shapes"
    shutil.copytree(shapes_root, root)
    photo = next(iter(sorted((root / "JPEGImages").glob("train_00011.*"))))
    kept = photo.read_bytes()
    command = ["run", f"--root={root}", f"--out={tmp_path / 'run'}", *RUN]

    def before(work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: (photo.unlink(missing_ok=True), work(*args, **named))[1]

    def after(work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: (work(*args, **named), photo.unlink(missing_ok=True))[0]

    moments: list[tuple[Any, str, Any]] = [
        (pipeline, "raise_problems", after),  # it was there when all was checked
        (frozen, "digest_of_photos", after),  # a loader's process finds out
        (labelling, "label_images", before),
        (pipeline, "evaluate", before),
        (pipeline, "label_sheets", before),
        (pipeline, "write_report", before),
    ]
    for module, name, when in moments:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, when(getattr(module, name)))
            line = failed(command, capsys)
        assert line.startswith(f"pgnn-geo: error: photo '{photo}' "), line
        photo.write_bytes(kept)
    main(command)
    assert files(tmp_path / "run") == {
        **whole,
        "config.json": files(tmp_path / "run")["config.json"],
    }


@pytest.mark.parametrize("name", ["run", "evaluate"])
def test_a_folder_that_cannot_be_written(
    name: str, shapes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "out"
    masks = shapes_root / "SegmentationClass"
    options = RUN if name == "run" else [f"--labels={masks}"]
    line = failed([name, f"--root={shapes_root}", f"--out={place}", *options], capsys)
    assert line.startswith("pgnn-geo: error:") and str(tmp_path / "file") in line
