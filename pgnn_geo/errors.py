"""What pgnn_geo says of input: the one exception, and the one warning."""

import warnings


class InputError(ValueError):
    """Input that cannot be used: says what was wrong, where, and what to do about it."""


class InputNote(UserWarning):
    """Input that was read in one of several possible ways, or left out: says how, or what."""


def note(text: str) -> None:
    """Warn with an :class:`InputNote`; the command line shows each text once, as a line."""
    warnings.warn(text, InputNote, stacklevel=3)


def expect(fits: bool, name: str, expected: object, got: object) -> None:
    """Raise :class:`InputError` for the argument `name` unless it fits."""
    if not fits:
        raise InputError(f"`{name}`: expected {expected}, got {got}")
