"""What pgnn_geo says of input: the one exception, and the one warning."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Input that cannot be used: says what was wrong, where, and what to do about it."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise an :class:`InputError` of a loader's or a trainer's process as it was raised there.

    PyTorch raises one in its place whose message is the traceback in that process.
    """
    try:
        yield
    except Exception as error:
        name = f"{InputError.__module__}.{InputError.__qualname__}: "
        _, found, message = str(error).rpartition(f"\n{name}")
        if found:
            raise InputError(message.strip()) from error
        raise


class InputNote(UserWarning):
    """Input that was read in one of several possible ways, or left out: says how, or what."""


def note(text: str) -> None:
    """Warn with an :class:`InputNote`; the command line shows each text once, as a line."""
    warnings.warn(text, InputNote, stacklevel=3)


def expect(fits: bool, name: str, expected: object, got: object) -> None:
    """Raise :class:`InputError` for the argument `name` unless it fits."""
    if not fits:
        raise InputError(f"`{name}`: expected {expected}, got {got}")
