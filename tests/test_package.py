"""The rules that hold the package together."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pgnn_geo

PACKAGE = Path(pgnn_geo.__file__).parent
EXTRAS = (
    *("lightning", "jsonargparse", "rich", "matplotlib", "tensorboard", "torchmetrics"),
    *("safetensors", "huggingface_hub", "cv2"),
)
#: The modules around the package's folders, in which a whole job is put together.
APPLICATION = ("config", "run_folder", "preflight", "evaluation", "stage2", "pipeline", "cli")
APPLICATION += ("detection", "patches", "cli_detect")
#: What no module of a folder may import: dependencies point one way.
FORBIDDEN = {
    **dict.fromkeys(
        ("datasets", "graph", "nn", "losses", "labels", "detect"),
        ("training", "viz", *APPLICATION),
    ),
    "graph ": ("nn", "labels", "datasets"),
    "datasets ": ("nn", "graph", "labels", "losses"),
    "losses ": ("labels", "datasets", "graph"),
    "training": ("viz", *APPLICATION),
}


def imported(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.startswith("pgnn_geo."))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_dependencies_point_one_way(folder):
    files = list((PACKAGE / folder.strip()).glob("*.py"))
    assert files
    wrong = [
        f"{path.name} imports {name}"
        for path in files
        for name in imported(path)
        if name.split(".")[1] in FORBIDDEN[folder]
    ]
    assert not wrong


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


def test_the_command_says_which_extra_it_lacks():
    code = "import sys; sys.modules['jsonargparse'] = None; import pgnn_geo.cli"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "pip install 'pgnn-geo[train]'" in result.stderr


def test_public_names():
    assert set(pgnn_geo.__all__) <= set(dir(pgnn_geo))
    assert pgnn_geo.__version__ == "0.1.0"
