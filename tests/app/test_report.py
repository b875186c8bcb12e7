import json
import re
from pathlib import Path

import pytest
import torch

from pgnn_geo.app.cli import main
from pgnn_geo.metrics import ConfusionMatrix


def scores(seed: int) -> dict:
    """Scores of a random labelling, and what they are to be shown as."""
    torch.manual_seed(seed)
    matrix = ConfusionMatrix(2, ("cat", "dog"))
    truth = torch.randint(0, 3, (40, 40))
    predicted = torch.where(torch.rand(40, 40) < 0.6, truth, torch.randint(0, 3, (40, 40)))
    matrix.update(predicted, truth)
    return matrix.compute().to_dict()


def make_run(folder: Path, lr: float, **more: object) -> Path:
    content = {"split": "train", "seed": 3, "supervision": ["tags: csv", "weights: none"], **more}
    (folder / "overlays").mkdir(parents=True)
    for n in (1, 2, 3, 4):
        (folder / "overlays" / f"sheet-{n}.png").write_bytes(b"")
    (folder / "metrics.json").write_text(json.dumps(content))
    config = {"train": {"lr": lr, "scale": [1.0, 2.0]}, "labels": {"power": None}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    part = text.split(heading)[1].split("\n## ")[0]
    lines = re.findall(r"^\| (.*) \|$", part, re.MULTILINE)
    return [line.split(" | ") for line in lines][2:]


def test_runs_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    cam, pgnn, deeplab = scores(0), scores(1), scores(2)
    full = make_run(
        Path("runs/full"), 0.1, cam=cam, pgnn=pgnn, segmentation=deeplab, segmentation_split="val"
    )
    (full / "segmentation" / "overlays").mkdir(parents=True)
    (full / "segmentation" / "overlays" / "sheet-1.png").write_bytes(b"")
    make_run(Path("runs/second"), 0.2, segmenter=cam, split="val")
    main(["report", "--runs", "runs/full", "runs/second", "--out", "pages/report.md"])
    assert "report: pages/report.md" in capsys.readouterr().out
    text = Path("pages/report.md").read_text()

    found = rows(text, "# Report")
    assert [row[:3] for row in found] == [
        ["runs/full", "CAM, labels", f"train, {cam['images']}"],
        ["runs/full", "P-GNN, labels", f"train, {cam['images']}"],
        ["runs/full", "DeepLab-v2", f"val, {cam['images']}"],
        ["runs/second", "DeepLab-v2", f"val, {cam['images']}"],
    ]
    for row, expected in zip(found, (cam, pgnn, deeplab, cam), strict=True):
        measures = [expected[name] for name in ("miou", "precision", "recall")]
        assert row[3:] == [f"{100 * value:.1f}" for value in measures]
    classes = rows(text, "## IoU of each class")
    assert [row[0] for row in classes] == ["background", "cat", "dog"]
    assert classes[1][2] == f"{100 * pgnn['per_class']['cat']['iou']:.1f}"
    assert rows(text, "## Settings that differ") == [["`train.lr`", "0.1", "0.2"]]
    assert "- runs/second (seed 3): tags: csv; weights: none" in text
    links = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(links) == 3 + 1 + 3 and all((Path("pages") / link).is_file() for link in links)


def test_a_run_without_truth_has_a_report_too(tmp_path: Path) -> None:
    folder, out = make_run(tmp_path / "run", 0.1), tmp_path / "report.md"
    main(["report", "--runs", str(folder), "--out", str(out)])
    text = out.read_text()
    assert "Nothing was measured" in text and "tags: csv" in text and "Settings" not in text


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
        main(["report", "--runs", str(folder), "--out", str(tmp_path / "report.md")])
    assert message in capsys.readouterr().err and not (tmp_path / "report.md").exists()
