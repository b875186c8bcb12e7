"""Tags as they were read, made tags as they were meant; the same for all that tags come from."""

import re
from collections.abc import Iterable, Mapping, Sequence

from pgnn_geo.datasets.listing import first_of, same_form
from pgnn_geo.errors import InputError, note
from pgnn_geo.io.masks import IGNORE

#: Between the parts of a name that may be several names.
_JOINED = re.compile(r"\s*[/+&_-]\s*")
_NOTHING = {"nan", "none", "null", "n/a"}  # as programs write a cell that is empty


def clean_tags(tags: Mapping[str, Sequence[str]], source: str) -> dict[str, tuple[str, ...]]:
    """Bring names of classes to one Unicode form, and leave out the background.

    The lists of classes of other tools have the background among them. It is in every photo, so
    that as a tag it says nothing. Names that differ in case or spaces only are said by an
    :class:`~pgnn_geo.errors.InputNote`.

    Args:
        tags (mapping): Names of the classes of each image id.
        source (str): Where the tags were read, for the notes.
    """
    clean = {i: tuple(dict.fromkeys(map(same_form, names))) for i, names in tags.items()}
    if dropped := sorted({n for own in clean.values() for n in own if is_background(n)}):
        note(
            f"{source}: the tag {', '.join(map(repr, dropped))} is left out: label 0 is the "
            "background in every photo"
        )
        clean = {i: tuple(n for n in own if not is_background(n)) for i, own in clean.items()}
    note_similar({name for own in clean.values() for name in own}, source)
    return clean


def is_background(name: str) -> bool:
    """Whether a class of this name is the background: ``background``, ``_background_``."""
    return name.strip("_ ").casefold() == "background"


def note_similar(names: Iterable[str], source: str) -> None:
    """Say which names of classes differ in case or spaces only, or may not be meant as one."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault("".join(name.split()).casefold(), []).append(name)
    if alike := [" and ".join(map(repr, own)) for own in groups.values() if len(own) > 1]:
        note(f"{source}: these are read as different classes: {first_of(alike)}")
    all_names = {name for own in groups.values() for name in own}
    joined = [
        f"{name!r} beside {' and '.join(map(repr, parts))}"
        for name in sorted(all_names)
        if len(parts := _JOINED.split(name)) > 1 and all_names.issuperset(parts)
    ]
    if joined:
        note(
            f"{source}: these are read as classes of their own: {first_of(joined)}; if they are "
            "several labels, separate them by spaces or commas"
        )
    if nothing := [repr(name) for name in sorted(all_names) if name.casefold() in _NOTHING]:
        note(
            f"{source}: {first_of(nothing)} is read as a class; leave a cell empty where a photo "
            "has no label"
        )


def is_text(name: str) -> bool:
    """Whether a name can be written to a file: JSON may hold halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def check_classes(classes: Sequence[str]) -> None:
    """Raise an :class:`InputError` unless label images can hold these classes."""
    if wrong := [repr(name) for name in classes if is_background(name) or not name.strip()]:
        raise InputError(
            f"classes: {first_of(wrong)} cannot be a class: label 0 is the background; leave it "
            "out, or rename it"
        )
    if wrong := [ascii(name) for name in classes if not is_text(name)]:
        raise InputError(f"classes: {first_of(wrong)} cannot be written as UTF-8; rename it")
    if len(classes) >= IGNORE:
        raise InputError(
            f"classes: {len(classes)}, but label images tell at most {IGNORE - 1}; name those that "
            "are wanted"
        )
