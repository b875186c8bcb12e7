"""Marks that make a configuration class the options of a command."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


class Fields:
    """Marks an argument of a command whose options are the fields of a configuration class.

    The argument's type is :obj:`Annotated[dict[str, Any], Fields(Config)]`: the command gets the
    fields by name, and their types, default values and texts stand in the class alone.

    Args:
        config (type): The configuration class.
        only (sequence of str, optional): The fields that are options; all if not given.
        skip (sequence of str): The fields that are none.
    """

    def __init__(
        self, config: type, only: Sequence[str] | None = None, skip: Sequence[str] = ()
    ) -> None:
        self.config = config
        names = [field.name for field in fields(config)]
        self.names = [name for name in only or names if name not in skip]
        self.skip = {name for name in names if name not in self.names}

    def add_to(self, parser: "ArgumentParser", _: str) -> None:
        """Add the options :obj:`--FIELD`."""
        options: dict[str, Any] = {"as_group": False, "instantiate": False, "sub_configs": True}
        parser.add_class_arguments(self.config, None, skip=self.skip, **options)

    def take(self, values: dict[str, Any], _: str) -> dict[str, Any]:
        """Return the fields, which are taken out of the values of all options."""
        return {name: values.pop(name) for name in self.names}


class Changes:
    """Marks an argument of a command that takes the place of what something else decides.

    Its options are :obj:`--NAME.FIELD`, and the command gets those fields alone that are given, on
    the command line or in a file, for :func:`dataclasses.replace` on what a recipe or a model has.

    Args:
        config (type): The configuration class.
        title (str): What the help says of the options.
    """

    def __init__(self, config: type, title: str) -> None:
        self.config, self.title = config, title
        self.names: list[str] = []

    def add_to(self, parser: "ArgumentParser", name: str) -> None:
        """Add the options, which have no default values."""
        options: dict[str, Any] = {"instantiate": False, "sub_configs": True, "help": self.title}
        parser.add_class_arguments(self.config, name, **options)
        for action in parser._actions:
            if action.dest.startswith(f"{name}."):
                action.default = argparse.SUPPRESS

    def take(self, values: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the fields that are given."""
        given: dict[str, Any] = values.pop(name, {})
        return given
