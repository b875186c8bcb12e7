"""The one exception that pgnn_geo raises for input it cannot use."""


class InputError(ValueError):
    """Input that cannot be used: says what was wrong, where, and what to do about it."""
