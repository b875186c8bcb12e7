"""`pgnn-geo demo` as its user meets it."""

import json

import pytest

from pgnn_geo.app.cli import main


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    main(["demo", f"--out={tmp_path}", "--epochs=1"])
    printed = capsys.readouterr().out
    assert "CAM IoU" in printed and "P-GNN IoU" in printed and "segmenter IoU" in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["cam"]["miou"] + 0.1 < metrics["pgnn"]["miou"] > 0.572
