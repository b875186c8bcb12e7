"""What can be chosen by name, by the package and by those who add to it."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from pgnn_geo.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name, in the order in which they were added.

    .. code-block:: python

        @REFINEMENTS.register("mine")
        class Mine(Refinement): ...

    From then on :obj:`"mine"` is a choice wherever the package's own names are. The command line
    imports the modules that it is told of by ``--imports`` first.

    Args:
        kind (str): What an entry is, as errors call it, for example :obj:`"refinement"`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return the decorator that adds an entry, and gives it back as it is.

        Args:
            name (str): The entry's name.

        Raises:
            InputError: If another entry has that name.
        """

        def add(entry: T) -> T:
            if name in self._entries and self._entries[name] is not entry:
                raise InputError(f"{self.kind} {name!r} is there already; choose another name")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Return the entry of a name.

        Raises:
            InputError: If there is none; it lists those that there are.
        """
        if name not in self._entries:
            raise InputError(f"unknown {self.kind} {name!r}: want one of {', '.join(self)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.kind!r}, {list(self)})"
