"""`benchmarks/cost.py` on drawn photos."""

import json
from pathlib import Path

import pytest
from scripts import run_benchmark

SETTING = "vgg_tiny 64 16"


def test_a_count_beside_its_prediction(shapes_root: Path, tmp_path: Path) -> None:
    options = [f"--root={shapes_root}", f"--out={tmp_path}", "--refine=par"]
    run_benchmark("cost", *options, "--one", "counts", SETTING, "45")
    (path,) = tmp_path.glob("counts-*.json")
    found = json.loads(path.read_text())
    assert found["photos"] == 45 and len(list((tmp_path / "links").iterdir())) == 45
    assert [stage["stage"] for stage in found["stages"]] == ["features", "evidence", "labels"]
    for stage in found["stages"]:
        want, there = stage["disk"]
        assert want == there
        assert min(stage["seconds"]) > 0 and min(stage["memory"]) > 5e7
    assert found["stages"][0]["disk"][0] == 128 + 2 * 45 * 192 * 16
    assert list(tmp_path.glob("*.npy")) == [] and not path.with_suffix("").is_dir()


@pytest.mark.slow
def test_tables_and_figure(
    shapes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    names = ("rates", "sets", "counts", "features")
    page.write_text("".join(f"<!-- cost {name} -->\n<!-- end -->\n" for name in names))
    options = [f"--root={shapes_root}", f"--out={tmp_path / 'out'}", f"--settings={SETTING}"]
    options += ["--counts", "30", "50", "--features", "60", "--readme", f"--page={page}"]
    options += [f"--count-setting={SETTING}", f"--feature-setting={SETTING}"]
    figure = tmp_path / "cost.png"
    run_benchmark("cost", *options, f"--figure={figure}")
    text = page.read_text()
    assert text.count("| `vgg_tiny` | 64 | 16 |") == 4  # its rates, and three data sets
    assert (
        "| vgg_tiny 64 16 | 30 | features |" in text
        and "| 50 | labels |" in text
        and "| 60 | 60 |" in text
    )
    assert "| COCO, 118,000 | `vgg_tiny` |" in text and figure.stat().st_size > 10_000
    capsys.readouterr()
    run_benchmark("cost", *options, f"--figure={figure}")
    assert "rates vgg_tiny" not in capsys.readouterr().out  # nothing is done again
    assert page.read_text() == text
