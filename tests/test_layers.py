"""The direction of imports: each package builds on those before it, and on no other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgnn_geo

PACKAGE = Path(pgnn_geo.__file__).parent
#: Bottom up. A package may import those of the lines before its own.
LAYERS = (
    ("errors",),
    ("options", "registry"),
    ("precision", "ranks"),
    ("graph",),
    ("nn",),
    ("io",),
    ("datasets", "losses", "metrics"),
    ("features", "viz"),
    ("labels",),
    ("training",),
    ("inference", "boxes"),
    ("app",),
)
#: What else a package does without.
WITHOUT = {
    **dict.fromkeys(("datasets", "losses", "metrics"), ("graph", "nn")),
    **dict.fromkeys(("labels", "training", "boxes"), ("viz",)),
}
#: Packages that only the application imports.
APP_ONLY = ("boxes",)
#: What lies beside the packages.
TOP_LEVEL = {"__init__.py", "errors.py", "options.py", "precision.py", "py.typed", "ranks.py"}
TOP_LEVEL |= {"registry.py"}

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def may_import(source: str, target: str) -> bool:
    """Whether a module of one package may import another package; both by name."""
    if source == target:
        return True
    if target in APP_ONLY and source != "app":
        return False
    return LEVEL[target] < LEVEL[source] and target not in WITHOUT.get(source, ())


def imported(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the package of every import of this library in a module, at any depth."""
    name = root.name
    parts = path.relative_to(root.parent).parts
    for node in ast.walk(ast.parse(path.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            modules = [f"{module}.{alias.name}" for alias in node.names]
        for module in modules:
            top, _, rest = module.partition(".")
            if top == name:
                yield node.lineno, rest.partition(".")[0]


def violations(root: Path) -> list[str]:
    """Return every import that points the wrong way, with its file and line."""
    found = []
    for path in sorted(root.rglob("*.py")):
        source = path.relative_to(root).parts[0].removesuffix(".py")
        if source == "__init__":  # public names, which no command needs
            allowed = set(LEVEL) - {"app", *APP_ONLY}
        else:
            allowed = {target for target in LEVEL if may_import(source, target)}
        found += [
            f"{path.relative_to(root.parent)}:{line} imports {target or root.name}"
            for line, target in imported(path, root)
            if target not in allowed
        ]
    return found


def test_imports_point_one_way() -> None:
    assert violations(PACKAGE) == []


def test_every_package_has_its_place() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders | {"errors", "options", "precision", "ranks", "registry"} == set(LEVEL)
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == TOP_LEVEL


@pytest.mark.parametrize(
    ("place", "code", "wrong"),
    [
        ("nn/layer.py", "from pgnn_geo.labels import seeds", "labels"),
        ("nn/layer.py", "def f():\n    import pgnn_geo.labels.seeds", "labels"),
        ("nn/layer.py", "from ..labels import seeds", "labels"),
        ("nn/layer.py", "from .. import labels", "labels"),
        ("nn/layer.py", "from pgnn_geo import PGNN", "PGNN"),
        ("training/fit.py", "from pgnn_geo.boxes import PhotoBoxes", "boxes"),
        ("training/fit.py", "from pgnn_geo.inference import Segmenter", "inference"),
        ("losses/loss.py", "from pgnn_geo.datasets import Item", "datasets"),
        ("datasets/voc.py", "from pgnn_geo.nn import PGNN", "nn"),
        ("boxes/patches.py", "from pgnn_geo.app.config import RunConfig", "app"),
        ("errors.py", "from pgnn_geo.io.files import write_json", "io"),
        ("__init__.py", "from pgnn_geo.app.cli import main", "app"),
        ("nn/layer.py", "from pgnn_geo.graph import stitch\nfrom . import conv", None),
        ("app/run.py", "from pgnn_geo.boxes import PhotoBoxes", None),
        ("boxes/training/fit.py", "from ...training import fitting\nfrom ..oicr import f", None),
    ],
)
def test_what_is_a_violation(tmp_path: Path, place: str, code: str, wrong: str | None) -> None:
    path = tmp_path / "pgnn_geo" / place
    path.parent.mkdir(parents=True)
    path.write_text(code)
    line = len(code.splitlines())
    expected = [] if wrong is None else [f"pgnn_geo/{place}:{line} imports {wrong}"]
    assert violations(tmp_path / "pgnn_geo") == expected
