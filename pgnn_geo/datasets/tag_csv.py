"""CSV files of tags, in the dialects that spreadsheets and scripts write."""

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pgnn_geo.datasets.listing import first_of
from pgnn_geo.datasets.tags import clean_tags
from pgnn_geo.errors import InputError, note

#: What tables call the column of photos, and that of their labels.
IMAGE_COLUMNS = (
    *("image", "filename", "file_name", "file", "path", "image_path", "image_id", "id", "name"),
)
LABEL_COLUMNS = (
    *("labels", "label", "tags", "tag", "classes", "class", "class_name", "categories", "category"),
)

_DELIMITERS = ",;\t|"
_SEPARATORS = ",;|\n"
_MARKS = {"&", "+", "/", "-"}
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_LIST = re.compile(r"[\[({].*[\])}]", re.DOTALL)


class _Row(NamedTuple):
    line: int
    image: str
    labels: str


def read_tag_csv(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Read tags from a CSV with the columns :obj:`image,labels`.

    Columns of other usual names (:obj:`filename`, :obj:`label`, ...) are taken where there is one
    for each. A photo of several rows has the labels of all.

    Cells are separated by commas, semicolons, tabs or bars, as the header is. Labels are separated
    by spaces, or all by the same one of comma, semicolon, bar and line break; spaces are then part
    of names. A cell may also be a list as Python and JSON write it. All but spaces is said by an
    :class:`~pgnn_geo.errors.InputNote`.

    Args:
        path (str or PathLike): UTF-8 file, or UTF-16 with a byte-order mark; other columns are
            ignored, an empty cell means no tags.

    Raises:
        InputError: If the file cannot be read, lacks a column, has torn rows, or labels that may be
            read in two ways.
    """
    rows = list(_rows(path, read_text(path)))
    count = Counter(row.image for row in rows)
    if twice := [image for image, times in count.items() if times > 1]:
        note(f"'{path}': photos with several rows have the labels of all: {first_of(twice)}")
    tags: dict[str, list[str]] = {}
    for row, own in zip(rows, _split(rows, path), strict=True):
        tags.setdefault(row.image, []).extend(own)
    return clean_tags(tags, f"'{path}'")


def tag_columns(header: Sequence[str]) -> tuple[int, int] | None:
    """Which columns hold photos and labels; :obj:`None` if that is not plain."""
    names = [name.strip().casefold() for name in header]
    images = [name for name in IMAGE_COLUMNS if name in names]
    labels = [name for name in LABEL_COLUMNS if name in names]
    if {"image", "labels"} <= set(names):
        images, labels = ["image"], ["labels"]
    if not images or len(labels) != 1:
        return None
    return names.index(images[0]), names.index(labels[0])


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file that a person wrote: UTF-8, or UTF-16 as its byte-order mark says.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if wide else "utf-8-sig")  # -sig: Excel writes a BOM
    except (OSError, UnicodeDecodeError) as error:
        hint = "" if isinstance(error, OSError) else "; save it as UTF-8 ('CSV UTF-8' in Excel)"
        raise InputError(f"'{path}' cannot be read as CSV or text: {error}{hint}") from error


def _rows(path: str | os.PathLike[str], text: str) -> Iterator[_Row]:
    """Yield the rows below the header; one error for all that are torn."""
    first, _, rest = text.partition("\n")
    delimiters = _DELIMITERS
    if match := re.fullmatch(r"sep=(.)\s*", first):  # Excel's own line
        delimiters, text = match[1], rest
    header: list[str] = []
    for delimiter in delimiters:
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
        )
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise InputError(f"'{path}' cannot be read as CSV: {error}") from error
        if columns := tag_columns(header):
            break
    else:
        head = text.partition("\n")[0].strip()
        raise InputError(
            f"'{path}': the first line must have the columns image,labels, or image and a column "
            f"of 0 and 1 for each class; got {head!r}"
        )
    image, labels = columns
    named = [header[k].strip() for k in columns]
    if [name.casefold() for name in named] != ["image", "labels"]:
        note(f"'{path}': photos are read from the column {named[0]!r}, labels from {named[1]!r}")
    torn = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            spare = any(cell.strip() for cell in cells[len(header) :])
            if spare or len(cells) <= max(image, labels) or not cells[image].strip():
                torn.append(f"line {reader.line_num}")
                continue
            yield _Row(reader.line_num, cells[image].strip(), cells[labels].strip())
    except csv.Error as error:
        raise InputError(
            f"'{path}' cannot be read as CSV: line {reader.line_num}: {error}"
        ) from error
    if torn:
        raise InputError(
            f"'{path}': rows that are not image,labels (labels are separated by spaces, or stand "
            f"in quotes): {first_of(torn)}"
        )


def _split(rows: Sequence[_Row], path: str | os.PathLike[str]) -> list[list[str]]:
    """The labels of each row; one way of separating them in the whole file."""
    lists = [_listed(row.labels) for row in rows]
    first: dict[str, int] = {}
    for row, listed in zip(rows, lists, strict=True):
        for mark in _SEPARATORS if listed is None else "":
            if mark in row.labels:
                first.setdefault(mark, row.line)
    if len(first) > 1:
        found = " and ".join(f"{mark!r} (line {line})" for mark, line in first.items())
        raise InputError(f"'{path}': labels are separated by {found}; want the same in all rows")
    separator = next(iter(first), None)
    if separator is None and all(listed is None for listed in lists):
        labels = [row.labels.split() for row in rows]
        marks = [f"line {r.line}" for r, own in zip(rows, labels, strict=True) if _MARKS & {*own}]
        if marks:
            raise InputError(
                f"'{path}': '&', '+', '/' or '-' stands where a label should: {first_of(marks)}; "
                "want spaces alone, or the same one of comma, semicolon and bar in all rows"
            )
        return labels
    labels = [
        listed if listed is not None else _parts(row.labels, separator)
        for row, listed in zip(rows, lists, strict=True)
    ]
    labels = [[" ".join(name.split()) for name in own if name.strip()] for own in labels]
    names = {name for own in labels for name in own}
    for row, own in zip(rows, labels, strict=True):
        for name in own:
            if " " in name and names.issuperset(name.split()):
                raise InputError(
                    f"'{path}': line {row.line}: {name!r} may be one class or several, as its "
                    f"words are classes too; separate labels by {separator or ','!r} in all rows"
                )
    how = "as lists" if separator is None else f"as separated by {separator!r}"
    note(f"'{path}': labels are read {how}, {len(names)} classes: {first_of(sorted(names), 8)}")
    return labels


def _parts(cell: str, separator: str | None) -> list[str]:
    """The names in a cell; where other cells are lists, one that is none is a single name."""
    return [cell] if separator is None else cell.split(separator)


def _listed(cell: str) -> list[str] | None:
    """The names in a list as Python or JSON write it; :obj:`None` if the cell is none."""
    if not _LIST.fullmatch(cell) or re.search(r"[^\[\](){},\s]", _QUOTED.sub("", cell)):
        return None
    if re.search(r"['\"]\s+['\"]", cell):  # an array of numpy's, without commas
        cell = re.sub(r"(['\"])\s+(?=['\"])", r"\1, ", cell)
    return [single or double for single, double in _QUOTED.findall(cell)]
