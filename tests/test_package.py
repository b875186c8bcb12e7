"""The rules that hold the package together."""

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pgnn_geo

EXTRAS = (
    *("lightning", "jsonargparse", "rich", "matplotlib", "tensorboard", "torchmetrics"),
    *("safetensors", "huggingface_hub", "cv2"),
)


def test_no_file_is_too_long():
    root = Path(__file__).parents[1]
    files = [
        p
        for d in ("pgnn_geo", "tests", "examples", "benchmarks")
        for p in root.glob(f"{d}/**/*.py")
    ]
    assert not [p.name for p in files if len(p.read_text().splitlines()) > 400]


def test_the_core_needs_no_extra():
    block = "; ".join(f"sys.modules[{name!r}] = None" for name in (*EXTRAS, "pycocotools"))
    code = (
        f"import sys; {block}; import pgnn_geo, pgnn_geo.datasets, pgnn_geo.metrics, "
        "pgnn_geo.io.checkpoint, pgnn_geo.viz, pgnn_geo.inference.predict, pgnn_geo.boxes; "
        "pgnn_geo.PGNN('vgg_tiny', weights=None)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.filterwarnings("ignore")  # the module sets its own filters
def test_the_command_says_which_extra_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    monkeypatch.delitem(sys.modules, "pgnn_geo.app.cli_parser", raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("pgnn_geo.app.cli")
    assert "'jsonargparse'" in stop.value.code
    assert "pip install 'pgnn-geo[train]'" in stop.value.code


def test_public_names():
    assert set(pgnn_geo.__all__) <= set(dir(pgnn_geo))


def test_one_version_everywhere():
    root = Path(__file__).parents[1]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert pgnn_geo.__version__ == version, "install the package again"
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text()
    releases = re.findall(r"^## (\d+\.\d+\.\d+)", (root / "CHANGELOG.md").read_text(), re.M)
    assert releases[0] == version
