"""`benchmarks/missing_tags.py` on drawn photos."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from scripts import BENCHMARKS, run_benchmark

TINY = """
features: {size: 64}
evidence: {positions: 500, iterations: 3, classifier_rounds: 1, prototype_rounds: 1}
labels: {background: 0.5}
"""


def test_pairs_on_the_same_tags(shapes_root: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [f"--root={shapes_root}", f"--recipe={tmp_path / 'tiny.yaml'}", "--seeds=2"]
    command += ["--split=val", "--also", "train", "--backbone=vgg_tiny", "--absence=0.2"]
    run_benchmark("missing_tags", *command, "--directions=8", f"--out={tmp_path}")
    found = json.loads((tmp_path / "missing.json").read_text())
    assert len(found) == 6 and found["absence, -1"]["missing"] == 0
    for seed in range(2):
        own, other = found[f"absence, {seed}"], found[f"as it is, {seed}"]
        assert own["missing"] == other["missing"] > 0 and other["added"] == 0 < own["added"]
        assert own["config"] == other["config"] | {"absence": 0.2}
    gap = sum(found[f"absence, {s}"]["miou"] - found[f"as it is, {s}"]["miou"] for s in range(2))
    assert f"over 2 draws: {gap / 2:+.1f} ±" in (tmp_path / "missing.md").read_text()


def test_a_share_is_dropped_and_each_photo_keeps_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    dropped = runpy.run_path(str(BENCHMARKS / "missing_tags.py"))["dropped"]
    torch.manual_seed(0)
    tags = torch.rand(60, 5) < 0.5
    tags[:, 0] |= ~tags.any(dim=1)
    kept = dropped(tags, 0.2, 3)
    assert not (kept & ~tags).any() and kept.any(dim=1).all()
    assert int((tags & ~kept).sum()) == int(0.2 * tags.sum())
    assert torch.equal(kept, dropped(tags, 0.2, 3)) and not torch.equal(kept, dropped(tags, 0.2, 4))
    assert torch.equal(dropped(tags, 0.99, 0).sum(dim=1), torch.ones(60, dtype=torch.long))
