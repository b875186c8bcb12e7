"""The argument parser of the command line: lists and switches as shells are used to them."""

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser


class Parser(ArgumentParser):
    """Reads ``--photos A B`` as a list of two, and ``--overlays`` as ``--overlays=true``.

    Dashes in the names of options may stand for underscores. Lists and switches are also read as
    jsonargparse has them: ``--photos '["A", "B"]'``, ``--overlays true``.
    """

    lists = ("--photos", "--runs", "--scales")
    switches = ("--overlays", "--probabilities", "--submission")

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
        return super().parse_args(words, *rest, **kwargs)


def _is_list(text: str) -> bool:
    return text.startswith("[") and text.endswith("]")


def run_command(
    program: str,
    commands: Sequence[Callable[..., None]],
    recipes: Mapping[str, Path],
    args: Sequence[str] | None = None,
) -> None:
    """Run the command that arguments name; each command is a function.

    Args:
        program (str): Name of the program.
        commands (sequence of callable): The commands; their arguments are the options.
        recipes (mapping): For a command's name, a YAML file of its options' default values.
        args (sequence of str, optional): The arguments; those of the program if not given.
    """
    parser = Parser(prog=program)
    subcommands = parser.add_subcommands(required=True)
    for command in commands:
        name, said = command.__name__, (inspect.getdoc(command) or "").split("\n")[0]
        files: list[Any] = [recipes[name]] if name in recipes else []
        options = Parser(description=said, default_config_files=files)
        options.add_argument("--config", action="config", help="YAML file of options")
        options.add_function_arguments(command, as_group=False, sub_configs=True)
        subcommands.add_subcommand(name, options, help=said)
    chosen = parser.instantiate(parser.parse_args(args))
    values = chosen[chosen.subcommand].as_dict()
    values.pop("config", None)
    {command.__name__: command for command in commands}[chosen.subcommand](**values)
