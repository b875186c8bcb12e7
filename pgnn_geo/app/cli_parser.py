"""The argument parser of the command line: commands are functions, options their arguments."""

import importlib
import inspect
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from pgnn_geo.errors import InputError
from pgnn_geo.options import Fields, marked


class Parser(ArgumentParser):
    """Reads ``--photos A B`` as a list of two, and ``--overlays`` as ``--overlays=true``.

    Dashes in the names of options may stand for underscores. Lists and switches are also read as
    jsonargparse has them: ``--photos '["A", "B"]'``, ``--overlays true``.
    """

    lists = ("--imports", "--photos", "--runs", "--scales")
    switches = ("--errors", "--overlays", "--probabilities", "--submission")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any
    ) -> Any:
        """Parse arguments, those of the command line if none are given."""
        given = list(sys.argv[1:] if args is None else args)
        words: list[str] = []
        while given:
            name, equals, value = given.pop(0).partition("=")
            if name.startswith("--"):
                name = "--" + name[2:].replace("-", "_")
            values = [value] if equals and name in self.lists else []
            word = name if values else name + equals + value
            while word in self.lists + self.switches and given and not given[0].startswith("--"):
                values.append(given.pop(0))
            if word in self.lists and values and not _is_list(values[0]):
                items = values if word == "--scales" else [json.dumps(value) for value in values]
                values = [f"[{', '.join(items)}]"]
            elif word in self.switches and not values:
                values = ["true"]
            words += [word, *values]
        for name, file in itertools.pairwise([*words, ""]):
            if name.startswith("--config"):
                check_aliases(name.partition("=")[2] or file)
        return super().parse_args(words, *rest, **kwargs)


#: What the texts of classes have: default values, which the parser says itself, and Sphinx's roles.
_DEFAULT = re.compile(r"\s*\(default:\s*(:\w+:`[^`]*`|[^()]*)\)")
_ROLE = re.compile(r":\w+:`~?([^`]*)`")


def check_aliases(path: str | os.PathLike[str]) -> None:
    """Check that a YAML file of options has no aliases: with ten of them a line is a billion words.

    Raises:
        InputError: If it has. What else is wrong with it its reader says.
    """
    try:
        # That of libyaml, where there is one: Python's takes long over what is nested deep.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        events = yaml.parse(Path(path).read_text(), Loader=loader)
        aliases = [event.anchor for event in events if isinstance(event, yaml.AliasEvent)]
    except (OSError, ValueError, yaml.YAMLError):
        return
    if aliases:
        raise InputError(f"'{path}' has the alias *{aliases[0]}; write out what it stands for")


def option_names(command: Callable[..., None]) -> list[str]:
    """Return the names of a command's options; those of a nested configuration stand for it."""
    marks, names = marked(command), list[str]()
    for name in inspect.signature(command).parameters:
        mark = marks.get(name)
        names += mark.names if isinstance(mark, Fields) else [name]
    return names


def add_options(parser: ArgumentParser, command: Callable[..., None]) -> None:
    """Add the options of a command.

    Args:
        parser (ArgumentParser): Where.
        command (callable): A function; its arguments are the options, see :class:`Fields`,
            :class:`Changes` and :class:`Arguments` as well.
    """
    marks = marked(command)
    own: dict[str, Any] = {"as_group": False, "sub_configs": True, "skip": set(marks)}
    parser.add_function_arguments(command, **own)
    for name, mark in marks.items():
        mark.add_to(parser, name)
    for each in [*parser._actions, *parser._action_groups]:
        for part in ("help", "title"):
            if isinstance(text := getattr(each, part, None), str):
                setattr(each, part, _ROLE.sub(r"\1", _DEFAULT.sub("", text)))


def call(command: Callable[..., None], values: dict[str, Any]) -> None:
    """Call a command with the values of its options."""
    values = dict(values)
    values |= {name: mark.take(values, name) for name, mark in marked(command).items()}
    command(**values)


def run_function(command: Callable[..., None], args: Sequence[str] | None = None) -> None:
    """Run the one command of a program.

    Args:
        command (callable): See :func:`add_options`.
        args (sequence of str, optional): The arguments; those of the program if not given.
    """
    parser = Parser(description=(inspect.getdoc(command) or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file of options")
    add_options(parser, command)
    values = parser.instantiate(parser.parse_args(args)).as_dict()
    values.pop("config", None)
    call(command, values)


def _is_list(text: str) -> bool:
    return text.startswith("[") and text.endswith("]")


def import_modules(names: Iterable[str]) -> None:
    """Import modules that register choices, from the current folder or where Python finds them.

    Args:
        names (iterable of str): Their names, as in an import.

    Raises:
        InputError: If one is not there or cannot be imported.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise InputError(
                f"--imports {name} cannot be imported: {type(error).__name__}: {error}"
            ) from error


def run_command(
    program: str,
    commands: Sequence[Callable[..., None]],
    recipes: Mapping[str, Path],
    args: Sequence[str] | None = None,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Run the command that arguments name; each command is a function, see :func:`add_options`.

    Each has the options :obj:`--config`, and :obj:`--imports` for :func:`import_modules` as well.

    Args:
        program (str): Name of the program.
        commands (sequence of callable): The commands.
        recipes (mapping): For a command's name, a YAML file of its options' default values.
        args (sequence of str, optional): The arguments; those of the program if not given.
        defaults (mapping, optional): For a command's name, default values of some of its options.
    """
    parser = Parser(prog=program)
    subcommands = parser.add_subcommands(required=True)
    first = (sys.argv[1:] if args is None else args)[:1]
    named = [command for command in commands if [command.__name__] == list(first)]
    for command in commands:
        name, title = command.__name__, (inspect.getdoc(command) or "").split("\n")[0]
        if named and command not in named:  # its options would take a while and are not asked for
            subcommands.add_subcommand(name, Parser(description=title), help=title)
            continue
        files: list[Any] = [recipes[name]] if name in recipes else []
        options = Parser(description=title, default_config_files=files)
        options.add_argument("--config", action="config", help="YAML file of options")
        said = "modules that register backbones, data sets, ... of your own"
        options.add_argument("--imports", type=list[str], default=[], help=said)
        add_options(options, command)
        options.set_defaults(dict((defaults or {}).get(name, {})))
        subcommands.add_subcommand(name, options, help=title)
    chosen = parser.parse_args(args)
    import_modules(chosen[chosen.subcommand].pop("imports"))  # before configurations check names
    chosen = parser.instantiate(chosen)
    values = chosen[chosen.subcommand].as_dict()
    values.pop("config", None)
    call({command.__name__: command for command in commands}[chosen.subcommand], values)
