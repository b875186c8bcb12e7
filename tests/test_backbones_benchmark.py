"""`benchmarks/backbones.py` writes the table of families into a page."""

import json
from pathlib import Path

import pytest
from scripts import run_benchmark

NAMES = ("vgg_tiny", "resnet18")


def test_a_row_for_each_stride(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--here", "--size=64", "--photos=1", "--threads=1", "--backbones=convnext_tiny"]
    run_benchmark("backbones", *options)
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["stride"], row["map"]) for row in rows] == [
        (32, [2, 2]),
        (16, [4, 4]),
        (8, [8, 8]),
    ]
    assert all(row["channels"] == [384, 768] and row["seconds"] > 0 for row in rows)
    assert 27e6 < rows[0]["parameters"] < 29e6  # 28.6 million with the classifier, says torchvision


@pytest.mark.slow
def test_strides_memory_and_speed_by_process(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- backbones -->\nold\n<!-- end -->\nafter\n")
    options = ["--size=64", "--photos=1", "--threads=1", "--readme", f"--page={page}"]
    run_benchmark("backbones", *options, f"--out={tmp_path}", "--backbones", *NAMES)
    found = json.loads((tmp_path / "backbones.json").read_text())
    assert found["machine"]["threads"] == 1
    rows = {(row["backbone"], row["stride"]): row for row in found["rows"]}
    assert list(rows) == [("vgg_tiny", 16), ("vgg_tiny", 8)] + [
        ("resnet18", stride) for stride in (32, 16, 8)
    ]
    for (_, stride), row in rows.items():
        assert row["map"] == [64 // stride] * 2 and row["seconds"] > 0
    assert rows["resnet18", 32]["channels"] == [256, 512]
    # At least its weights; measured in one process, the second would be at the first one's peak.
    assert rows["resnet18", 32]["memory"] > 4 * rows["resnet18", 32]["parameters"] > 44e6
    assert rows["vgg_tiny", 8]["memory"] < rows["resnet18", 32]["memory"]
    text = page.read_text()
    assert text.startswith("before\n<!-- backbones -->\n| backbone |") and text.endswith("after\n")
    assert "old" not in text and "| `resnet18` | 11.2 million | 8 | 8 x 8 | 256 + 512 |" in text
    run_benchmark("backbones", *options, f"--out={tmp_path}", "--backbones", "vgg_tiny")
    again = json.loads((tmp_path / "backbones.json").read_text())["rows"]
    assert again[2:] == found["rows"][2:] and len(again) == 5  # resnet18 is as it was
    assert found["machine"]["cpu"] in text and "1 thread(s)" in text
