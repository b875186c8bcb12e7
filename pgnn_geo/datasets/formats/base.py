"""What a format of tags is: how a file of it is told from others, and how it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pgnn_geo.datasets.tag_csv import read_text
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import parse_json

#: The names of the classes of each photo, by what the file calls the photo.
Tags = dict[str, tuple[str, ...]]


class TagFile:
    """A file that may hold tags; it is read and parsed once, whatever formats look at it.

    Args:
        path (Path): The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def text(self) -> str:
        """The whole file."""
        return read_text(self.path)

    @cached_property
    def json(self) -> Any:
        """What it holds as JSON; :obj:`None` if it is none.

        Raises:
            InputError: If it is called JSON and cannot be read as such.
        """
        if self.path.suffix.lower() != ".json":
            return None
        try:
            return parse_json(self.text)
        except ValueError as error:
            raise InputError(f"'{self.path}' cannot be read as JSON: {error}") from error

    @cached_property
    def xml(self) -> ElementTree.Element | None:
        """Its root element as XML; :obj:`None` if it is none.

        Raises:
            InputError: If it is called XML and cannot be read as such.
        """
        if self.path.suffix.lower() != ".xml":
            return None
        try:
            return ElementTree.fromstring(self.text)
        except ElementTree.ParseError as error:
            raise InputError(f"'{self.path}' cannot be read as XML: {error}") from error


@dataclass(frozen=True)
class TagFormat:
    """A format of tags.

    Args:
        name (str): As a ledger has it.
        title (str): As people call it.
        fits (callable): Whether a file is of this format.
        read (callable): The tags in it; a :class:`KeyError`, :class:`TypeError`,
            :class:`ValueError`, :class:`IndexError` or :class:`AttributeError` means that it is
            damaged.
        exact (bool): Whether names are paths below the folder of the photos; otherwise folders
            before them may be others. (default: :obj:`False`)
    """

    name: str
    title: str
    fits: Callable[[TagFile], bool]
    read: Callable[[TagFile], Tags]
    exact: bool = False


def collect(pairs: "list[tuple[str, str]]", photos: "list[str]") -> Tags:
    """Gather pairs of photo and class; photos without any have an empty entry."""
    found: dict[str, dict[str, None]] = {photo: {} for photo in photos}
    for photo, name in pairs:
        found[photo][name] = None
    return {photo: tuple(names) for photo, names in found.items()}
