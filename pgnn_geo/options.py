"""Marks that make configuration classes and constructors the options of a command."""

import argparse
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from pgnn_geo.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


class Arguments:
    """Marks a field of a configuration class that holds the arguments of a constructor.

    The field's type is :obj:`Annotated[dict[str, Any], Arguments(Class)]`. Names, types, default
    values and texts of the arguments stand in the constructor alone; they are the options
    :obj:`--FIELD.ARGUMENT` of a command.

    Args:
        *constructors (type): The class, or several classes of which one is built. An argument that
            more than one of them has is that of the first.
        skip (sequence of str): Arguments that something else decides.
        **defaults: Default values in place of the constructor's.
    """

    def __init__(self, *constructors: type, skip: Sequence[str] = (), **defaults: Any) -> None:
        self.owners: dict[str, type] = {}
        own = dict[str, Any]()
        for constructor in constructors:
            for name, parameter in inspect.signature(constructor).parameters.items():
                if name not in skip and name not in own:
                    self.owners[name], own[name] = constructor, parameter.default
        self.defaults: dict[str, Any] = own | defaults

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments, with default values for those that are not given.

        Raises:
            InputError: If there is no such argument, or a value is of another type.
        """
        if unknown := [name for name in given if name not in self.defaults]:
            raise InputError(
                f"{', '.join(unknown)}: no arguments of {self._names()} that can be chosen here; "
                f"want some of {', '.join(self.defaults)}"
            )
        for name, value in given.items():
            hint = get_type_hints(self.owners[name].__init__)[name]  # type: ignore[misc]
            if not _fits(value, hint):
                wanted = hint.__name__ if isinstance(hint, type) else str(hint)
                raise InputError(f"{name}={value!r} of {self._names()}: want {wanted}")
        return self.defaults | dict(given)

    def _names(self) -> str:
        return " or ".join(dict.fromkeys(owner.__name__ for owner in self.owners.values()))

    def add_to(self, parser: "ArgumentParser", name: str) -> None:
        """Add the options :obj:`--NAME.ARGUMENT`."""
        title = f"Arguments of {self._names()}"
        for i, constructor in enumerate(dict.fromkeys(self.owners.values())):
            others = {
                each
                for each in inspect.signature(constructor).parameters
                if self.owners.get(each) is not constructor
            }
            options: dict[str, Any] = {"instantiate": False, "as_group": i == 0, "help": title}
            parser.add_class_arguments(constructor, name, skip=others, **options)
        parser.set_defaults({f"{name}.{each}": value for each, value in self.defaults.items()})

    def take(self, values: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the arguments, which are taken out of the values of all options."""
        given: dict[str, Any] = values.pop(name)
        return given


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
        held = marked(self.config)
        parser.add_class_arguments(self.config, None, skip=self.skip | set(held), **options)
        for name in self.names:
            if name in held:
                held[name].add_to(parser, name)

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


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; of other types than those of options, it is taken for one."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in parts
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Sequence:
        return isinstance(value, list | tuple) and all(_fits(each, parts[0]) for each in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint if hint in (int, str, bool, type(None)) else True


def marked(owner: Any) -> dict[str, Arguments | Fields | Changes]:
    """Return the marks on the fields of a class, or on the arguments of a function, by name."""
    return {
        name: mark
        for name, hint in get_type_hints(owner, include_extras=True).items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, Arguments | Fields | Changes)
    }


def constructor_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a constructor was called with.

    Args:
        values (mapping): Its :func:`locals`, before it sets anything.
    """
    return {name: value for name, value in values.items() if name not in ("self", "__class__")}
