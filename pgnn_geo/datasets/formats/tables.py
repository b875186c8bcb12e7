"""Tables: a column of labels, or a column of zeros and ones for each class."""

import csv
import io

from pgnn_geo.datasets.formats.base import TagFile, TagFormat, Tags
from pgnn_geo.datasets.tag_csv import IMAGE_COLUMNS, read_tag_csv, tag_columns

_YES = {"1", "1.0", "1,0", "true", "yes"}
_NO = {"", "0", "0.0", "0,0", "false", "no"}


def _table(file: TagFile) -> list[list[str]]:
    """All rows, in which cells are stripped; empty if this is no such table."""
    if file.path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        return []
    header = file.text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(file.text, newline=""), delimiter=delimiter)
    return [own for row in rows if any(own := [cell.strip() for cell in row])]


def _fits_columns(file: TagFile) -> bool:
    table = _table(file)
    if len(table) < 2 or tag_columns(table[0]):
        return False
    image = _image_column(table[0])
    cells = [cell.casefold() for k, cell in enumerate(table[1]) if k != image]
    return image is not None and bool(cells) and set(cells) <= _YES | _NO


def _image_column(header: list[str]) -> int | None:
    names = [name.casefold() for name in header]
    return next((names.index(name) for name in IMAGE_COLUMNS if name in names), None)


def _read_columns(file: TagFile) -> Tags:
    header, *rows = _table(file)
    image = _image_column(header)
    assert image is not None
    columns = [k for k, name in enumerate(header) if k != image and name]
    found: Tags = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, the header {len(header)}")
        for k in columns:
            if row[k].casefold() not in _YES | _NO:
                raise ValueError(
                    f"row {number}, column {header[k]!r} holds {row[k]!r}; want 0 or 1 in each "
                    "column but that of images, or the columns image,labels"
                )
        if row[image] in found:
            raise ValueError(f"{row[image]} has more than one row")
        found[row[image]] = tuple(header[k] for k in columns if row[k].casefold() in _YES)
    return found


def _fits_labels(file: TagFile) -> bool:
    return bool(tag_columns(next(iter(_table(file)), []))) or file.text.startswith("sep=")


#: Columns of zeros and ones, as pandas' ``get_dummies``, Roboflow and Kaggle have them.
COLUMNS = TagFormat(
    "columns", "CSV with a column of 0 and 1 for each class", _fits_columns, _read_columns
)

#: The columns ``image,labels``.
LABELS = TagFormat(
    "csv", "CSV with the columns image,labels", _fits_labels, lambda f: read_tag_csv(f.path), True
)
