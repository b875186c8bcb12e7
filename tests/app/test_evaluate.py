"""`pgnn-geo evaluate`: what each kind of error costs, and each class beside other labels."""

import json
from pathlib import Path

import numpy as np
import pytest

from pgnn_geo.app.cli import main
from pgnn_geo.datasets import VOC2012
from pgnn_geo.io.masks import load_mask, save_mask
from pgnn_geo.metrics import ConfusionMatrix, ErrorBreakdown


@pytest.fixture
def folders(shapes_root: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Labels without one class, and other labels that are the truth but for another class."""
    truth = VOC2012(shapes_root, "train", with_masks=True)
    fish, bird = (truth.classes.index(name) + 1 for name in ("fish", "bird"))
    for index, name in enumerate(truth.image_ids):
        mask = np.asarray(truth.read_mask(index))
        for folder, lost in (("own", fish), ("other", bird)):
            (tmp_path / folder).mkdir(exist_ok=True)
            save_mask(tmp_path / folder / f"{name}.png", np.where(mask == lost, 0, mask))
    return tmp_path / "own", tmp_path / "other"


def test_errors_and_another_folder(
    folders: tuple[Path, Path],
    shapes_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own, other = folders
    figures = tmp_path / "scores.json"
    command = ["evaluate", f"--labels={own}", f"--root={shapes_root}", f"--out={figures}"]
    main([*command, "--errors", f"--beside={other}"])
    printed, found = " ".join(capsys.readouterr().out.split()), json.loads(figures.read_text())
    truth = VOC2012(shapes_root, "train", with_masks=True)
    for folder, scores in ((own, found), (other, found["beside"])):
        matrix = ConfusionMatrix(len(truth.classes), truth.classes)
        breakdown = ErrorBreakdown(len(truth.classes), truth.classes)
        for index, name in enumerate(truth.image_ids):
            labels = load_mask(folder / f"{name}.png")
            matrix.update(labels, truth.read_mask(index))
            breakdown.update(labels, truth.read_mask(index))
        assert {name: scores[name] for name in matrix.compute().to_dict()} == (
            matrix.compute().to_dict()
        )
        if folder == own:
            assert found["errors"] == breakdown.compute().to_dict()
    fish = found["errors"]["per_class"]["fish"]
    assert fish["spill"] == fish["confusion"] == 0 < min(fish["missed"], fish["boundary"])
    loss = 100 * found["beside"]["per_class"]["fish"]["iou"]
    assert loss > 50 and f"below {other}: " in printed and f"fish (-{loss:.1f})" in printed
    assert "boundary" in printed and f"{100 * fish['missed']:.1f}" in printed
    main([*command[:3], "--beside", str(own)])
    assert "below" in (printed := capsys.readouterr().out) and "none" in printed
    assert "boundary" not in printed


def test_a_label_image_that_is_missing_beside(
    folders: tuple[Path, Path], shapes_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = folders
    name = next(other.iterdir())
    name.unlink()
    with pytest.raises(SystemExit):
        main(["evaluate", f"--labels={own}", f"--root={shapes_root}", f"--beside={other}"])
    assert name.name in capsys.readouterr().err
