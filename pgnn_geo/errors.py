"""The one exception that pgnn_geo raises for input it cannot use."""


class InputError(ValueError):
    """Input that cannot be used: says what was wrong, where, and what to do about it."""


def expect(fits: bool, name: str, expected: object, got: object) -> None:
    """Raise :class:`InputError` for the argument `name` unless it fits."""
    if not fits:
        raise InputError(f"`{name}`: expected {expected}, got {got}")
