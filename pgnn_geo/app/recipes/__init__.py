"""Recipes: values of all options of ``run`` that were measured together, as YAML files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

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
    return path
