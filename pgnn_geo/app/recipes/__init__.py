"""Recipes: values of all options of ``run`` that were measured together, as YAML files."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pgnn_geo.app.cli_parser import check_aliases
from pgnn_geo.errors import InputError

NAMES = ("best", "many", "paper", "cam", "trained")


def recipe_file(args: Sequence[str]) -> Path:
    """Return the file of the recipe that command-line arguments name, wherever it stands in them.

    Args:
        args (sequence of str): The arguments.

    Raises:
        InputError: If there is no such recipe.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", nargs="?", default="best")
    name = str(parser.parse_known_args(args)[0].recipe)
    path = Path(__file__).with_name(f"{name}.yaml") if name in NAMES else Path(name)
    if not path.is_file():
        raise InputError(f"There is no recipe {name!r}; want one of {NAMES} or a YAML file.")
    check_aliases(path)
    return path


def recipe_defaults(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the values of a recipe for those options that a command shares with ``run``.

    Args:
        path (Path): See :func:`recipe_file`.
        names (sequence of str): The names of the command's options.

    Returns:
        Values by the dotted names of options.

    Raises:
        InputError: If the file is no such.
    """
    try:
        values = yaml.safe_load(path.read_text()) or {}
        if not isinstance(values, dict):
            raise ValueError("want names of options and their values")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"The recipe {path} cannot be read: {error}") from error
    return dict(_dotted({name: values[name] for name in names if name in values}))


def _dotted(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{start}{name}.")
        else:
            yield start + name, value
