"""`benchmarks/tables.py` as its user starts it, on drawn photos with tiny recipes."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
from scripts import run_benchmark

FROZEN = """
flow: frozen
features: {size: 64}
evidence: {positions: 500, iterations: 3, classifier_rounds: 1, prototype_rounds: 1}
labels: {background: 0.5, refine: par}
"""
TRAINED = """
flow: trained
model: cam
network: {weights: null, freeze_stages: 0, output_stride: 8}
train: {size: 64, epochs: 1, completion_epochs: 0, workers: 0}
"""
SEGMENT = """
network: {weights: null, hidden_channels: 32}
train: {freeze_stages: 1, size: 64, crop: 64, epochs: 1, workers: 0}
"""
ABLATION = "--weights none --size 64 --epochs 1 --completion-epochs 1 --workers 0"

tables = partial(run_benchmark, "tables")


@pytest.fixture
def command(shapes_root: Path, tmp_path: Path) -> list[str]:
    for name, text in (("few", FROZEN), ("plain", TRAINED), ("segment", SEGMENT)):
        (tmp_path / f"{name}.yaml").write_text(text)
    recipes = [str(tmp_path / f"{name}.yaml") for name in ("plain", "few")]
    out = [f"--root={shapes_root}", f"--out={tmp_path / 'out'}", "--backbones", "vgg_tiny"]
    return [*out, "--recipes", *recipes, "--segment", str(tmp_path / "segment.yaml")]


def times(folder: Path) -> dict[Path, int]:
    """When each finished step was finished."""
    names = ("metrics.json", "raw.json", "model.safetensors")
    return {path: path.stat().st_mtime_ns for name in names for path in folder.rglob(name)}


def test_labels_and_networks_are_made_once_and_put_into_a_page(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, out = tmp_path / "page.md", tmp_path / "out"
    page.write_text("# Tables\n\n<!-- tables drawn -->\nold\n<!-- end -->\n\nThe end.\n")
    command += ["--name", "drawn", "--paste", str(page)]
    tables(*command, "--tables", "1")
    first = times(out)
    assert len(first) == 5  # two runs and their models, and labels that are not refined
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.index("all: about") < printed.index("label ")
    tables(*command, "--tables", "1", "2")
    assert first.items() <= times(out).items()

    found = json.loads((out / "tables.json").read_text())["tables"]
    titles = [row["title"] for row in found["1"]["rows"]]
    assert titles == [
        "`plain`, vgg_tiny, seed 0",
        "`few`, vgg_tiny, refined",
        "`few`, vgg_tiny, not refined",
        "its CAM, `few`, vgg_tiny",
    ]
    few = json.loads((out / "labels-few-vgg_tiny" / "metrics.json").read_text())
    raw = json.loads((out / "labels-few-vgg_tiny" / "raw.json").read_text())
    for row, scores in zip(found["1"]["rows"][1:], (few["pgnn"], raw, few["cam"]), strict=True):
        assert [row[name] for name in ("miou", "precision", "recall")] == [
            scores[name] for name in ("miou", "precision", "recall")
        ]
    assert few["pgnn"]["miou"] != raw["miou"]
    (classes,) = found["1"]["classes"].values()
    for name, scores in classes.items():
        assert scores["cam"] == few["cam"]["per_class"][name]["iou"]
        assert scores["iou"] == raw["per_class"][name]["iou"]
    assert [row["title"] for row in found["2"]["rows"]] == [
        "true masks",
        *("plain", "plain, mutual complement literal", "few", "few, mutual complement literal"),
    ]
    text = page.read_text()
    assert "old" not in text and text.endswith("<!-- end -->\n\nThe end.\n")
    assert f"| `few`, vgg_tiny, not refined | {100 * raw['miou']:.1f} | " in text
    assert "### Table 2: networks, vgg_tiny" in text
    assert f"--name drawn --paste {page} --tables 1 2" in text
    assert (out / "tables.md").read_text().strip() in text


def test_the_estimate_does_nothing_and_leaves_out_what_is_there(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables(*command, "--estimate")
    printed = capsys.readouterr().out
    for part in ("`few`, vgg_tiny: about", "table 2, vgg_tiny: about", "table 6: about", "all:"):
        assert part in printed
    assert "table 3" not in printed and not (tmp_path / "out").exists()
    done = tmp_path / "out" / "labels-few-vgg_tiny" / "metrics.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        import _tables_plan as plan
        import tables as script

        patch.setattr(plan, "seconds_of_a_pass", lambda backbone: 2.0)
        args = script.parser().parse_args([*command, "--seeds", "0", "1"])
        args.tables = [1, 2]
        found = plan.estimate(plan.Plan(args.recipes, args.backbones, args.seeds), args, 20)
    each = 20 * 2.0
    assert found["labels of `few`, vgg_tiny"] == 0
    assert found["labels of `plain`, vgg_tiny, seed 1"] == plan.PASSES["cam"] * each
    one = plan.PASSES["stage 2"] + plan.PASSES["epoch of stage 2"]
    assert math.isclose(found["table 2, vgg_tiny"], 10 * one * each)  # five rows, two seeds


def test_a_page_without_a_place_is_said_before_anything_is_made(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- tables other -->\n<!-- end -->\n")
    with pytest.raises(SystemExit):
        tables(*command, "--paste", str(page), "--tables", "1")
    assert "has no place for a table: <!-- tables voc -->" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("labels-*"))


@pytest.mark.slow
def test_parts_of_the_trained_network(command: list[str], tmp_path: Path) -> None:
    tables(*command, "--tables", "5", "--ablation", ABLATION)
    rows = json.loads((tmp_path / "out" / "tables.json").read_text())["tables"]["5"]["rows"]
    ours = json.loads((tmp_path / "out" / "parts" / "ablation.json").read_text())["tables"]
    assert [row["miou"] for row in rows] == [row["miou"] for row in ours[0]["rows"]]
    assert "### Table 5: Table 5: patches per photo" in (tmp_path / "out" / "tables.md").read_text()
