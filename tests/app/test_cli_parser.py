import sys
from pathlib import Path

import pytest

from pgnn_geo.app.cli_parser import run_command
from pgnn_geo.errors import InputError
from pgnn_geo.registry import Registry

SAUCES = Registry[str]("sauce")
SAUCES.register("plain")("butter")
MODULE = """
import test_cli_parser_sauces
test_cli_parser_sauces.SAUCES.register("hot")("chili")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with a user's module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setitem(sys.modules, "test_cli_parser_sauces", sys.modules[__name__])
    (tmp_path / "my_sauces.py").write_text(MODULE)
    return tmp_path


def cook(sauce: str = "plain", out: str = "dish.txt") -> None:
    """Cook a dish."""
    Path(out).write_text(SAUCES[sauce])


@pytest.mark.parametrize("way", ["option", "file"])
def test_a_module_of_the_users_adds_choices(folder: Path, way: str) -> None:
    with pytest.raises(InputError, match="unknown sauce 'sweet': want one of plain"):
        run_command("kitchen", [cook], {}, ["cook", "--sauce", "sweet"])
    (folder / "recipe.yaml").write_text("imports: [my_sauces]\n")
    given = {"option": ["--imports", "my_sauces"], "file": ["--config", "recipe.yaml"]}[way]
    run_command("kitchen", [cook], {}, ["cook", *given, "--sauce", "hot"])
    assert (folder / "dish.txt").read_text() == "chili"


def test_a_module_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"--imports my_forks.*No module named 'my_forks'"):
        run_command("kitchen", [cook], {}, ["cook", "--imports", "my_forks"])
    assert not (folder / "dish.txt").exists()


def test_a_module_that_fails_is_named(folder: Path) -> None:
    (folder / "my_knives.py").write_text("1 / 0")
    with pytest.raises(InputError, match=r"--imports my_knives.*ZeroDivisionError"):
        run_command("kitchen", [cook], {}, ["cook", "--imports", "my_knives"])
