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


def lists_of_names(root: Path) -> Iterator[tuple[str, bool, set[str]]]:
    """Yield each class of a package: its place, whether it is a configuration, and its names.

    The names are the fields of a configuration, or the arguments of another class.
    """
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            place = f"{path.relative_to(root)}:{node.name}"
            if node.name.endswith("Config"):
                targets = (each.target for each in node.body if isinstance(each, ast.AnnAssign))
                yield place, True, {each.id for each in targets if isinstance(each, ast.Name)}
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                    arguments = [*each.args.args[1:], *each.args.kwonlyargs]
                    yield place, False, {argument.arg for argument in arguments}


def repeated(root: Path) -> list[str]:
    """Return the constructors of which a configuration class has four arguments or more."""
    found = list(lists_of_names(root))
    return [
        f"{config} repeats {place}: {', '.join(sorted(fields & names))}"
        for config, is_config, fields in found
        for place, other, names in found
        if is_config and not other and len(fields & names) > 3
    ]


#: Configurations of which that is meant: the words by which a data set is opened, of which each
#: class has other forms; and what a recipe of stage 2 decides of its network.
MEANT = (
    "datasets/config.py:DataConfig repeats datasets/",
    "training/segmentation_config.py:SegmentationTrainingConfig repeats nn/deeplab.py:DeepLabV2",
)


def test_no_configuration_repeats_the_arguments_of_a_constructor() -> None:
    assert [line for line in repeated(PACKAGE) if not line.startswith(MEANT)] == []


def test_what_is_a_repetition(tmp_path: Path) -> None:
    code = "class Net:\n    def __init__(self, a, b=1, *, c=2, d=3): ...\n"
    for name, names in (("Same", "abcd"), ("Other", "abce")):
        code += f"class {name}Config:\n" + "".join(f"    {each}: int\n" for each in names)
    (tmp_path / "net.py").write_text(code)
    assert repeated(tmp_path) == ["net.py:SameConfig repeats net.py:Net: a, b, c, d"]
