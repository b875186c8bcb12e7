"""Photos and tags of a Hugging Face data set, written as files that every command reads."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pgnn_geo.datasets.listing import first_of
from pgnn_geo.datasets.photo_file import photo_suffix
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import atomic_write, first_difference, write_json

#: Names of columns that are taken for tags where their type alone does not say it.
TAG_COLUMNS = frozenset(
    {"label", "labels", "tag", "tags", "class", "classes", "category", "categories"}
)

_SPLIT = re.compile(r"(.+?)-\d{5}-of-\d{5}")
_ROWS = 64  #: read at a time


class Unpacked(NamedTuple):
    """What :func:`unpack` wrote."""

    photos: int
    classes: tuple[str, ...]
    split: str


class _Source(NamedTuple):
    """A split of a data set: the types of its columns, and its rows as Arrow tables."""

    features: dict[str, Any]
    tables: Callable[[list[str]], Iterable[Any]]
    rows: int


def is_hugging_face(folder: Path) -> bool:
    """Whether this is what :obj:`save_to_disk` wrote, a parquet file or a folder with some."""
    if folder.is_file():
        return folder.suffix == ".parquet"
    names = ("dataset_dict.json", "state.json")
    return any((folder / name).is_file() for name in names) or any(folder.glob("**/*.parquet"))


def unpack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    split: str | None = None,
    image: str | None = None,
    tags: str | None = None,
    classes: Sequence[str] | None = None,
    progress: Callable[[Iterable[Any], str, int], Iterable[Any]] = lambda rows, title, size: rows,
) -> Unpacked:
    """Write the photos of a Hugging Face data set as files, and their tags as :obj:`labels.csv`.

    The photos are :obj:`000000.jpg` and so on, byte for byte as the data set has them; an
    unpacking that was cut off is gone on with. :obj:`labels.csv`, written last, has the columns
    :obj:`image,labels,source`, the last one the path that the data set knew a photo by. No code of
    the data set is run.

    Args:
        source (str or PathLike): A folder that :obj:`datasets.save_to_disk` wrote, a folder of
            parquet files, or one of them.
        out (str or PathLike): The folder of the photos.
        split (str, optional): Which split; needed if there are several.
        image, tags (str, optional): Columns of the photos and the tags; needed if their types do
            not tell. Tags are a :obj:`ClassLabel`, a number, text, a list of these,
            or a list with a 0 or 1 for each class.
        classes (sequence of str, optional): Names of the classes: where tags are mere numbers,
            those that the numbers 0, 1, ... stand for.
        progress (callable, optional): Progress display.

    Raises:
        InputError: If the package :obj:`datasets` is missing, the data set cannot be read, or
            columns, splits or photos are not as described.
    """
    source, out = Path(source), Path(out)
    name, found = _choose_split(_splits(source), split, source)
    image = _choose(found.features, image, _is_image, "image", source)
    tags = _choose(found.features, tags, _is_tag, "tags", source)
    labelled = _class_names(found.features[tags])
    names = labelled or (None if classes is None else list(classes))
    photos: list[tuple[str, str]] = []
    values: list[Any] = []
    problems = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        tables = found.tables([image, tags])
        for photo, value in progress(_rows(tables, image, tags), "unpack", found.rows):
            number = len(photos)
            data, origin = _parts(photo)
            suffix = None if data is None else photo_suffix(data[:12])
            photos.append((f"{number:06d}{suffix}", origin))
            values.append(value)
            if data is None or suffix is None:
                what = "no bytes" if data is None else "neither JPEG nor PNG"
                problems.append(f"row {number} ({what})")
            else:
                _write(out / photos[-1][0], data)
        if problems:
            raise InputError(
                f"'{source}', column {image!r}: want photos as JPEG or PNG with their bytes, got "
                f"{first_of(problems)}; where there are paths alone, save_to_disk puts the bytes in"
            )
        # Lists of class labels are numbers of classes by their type, unless a class came twice.
        if _is_multi_hot(values, names) and (
            labelled is None or any(len(set(row)) < len(row) for row in values)
        ):
            values = [[k for k, there in enumerate(row) if there] for row in values]
        named = _named(values, names, f"'{source}', column {tags!r}")
        _write(out / "labels.csv", _table(photos, named).encode())
    except OSError as error:
        raise InputError(f"'{out}' cannot be written: {error}") from error
    return Unpacked(len(photos), tuple(sorted({n for own in named for n in own})), name)


def unpack_once(
    source: str | os.PathLike[str],
    out: Path,
    split: str,
    classes: Sequence[str] | None = None,
    progress: Callable[[Iterable[Any], str, int], Iterable[Any]] = lambda rows, title, size: rows,
) -> Path:
    """Unpack a data set by :func:`unpack` unless that is done, and return its :obj:`labels.csv`.

    Args:
        source, classes, progress: See :func:`unpack`.
        out (Path): The folder of the photos; :obj:`unpacked.json` in it says what they are of.
        split (str): Which split, if there are several.

    Raises:
        InputError: As :func:`unpack`, or if the folder has the photos of something else.
    """
    record, path = out / "unpacked.json", out / "labels.csv"
    wanted = {"source": str(Path(source).resolve()), "split": split, "classes": classes}
    if record.is_file():
        if difference := first_difference(json.loads(record.read_text()), wanted):
            raise InputError(
                f"'{out}' has photos of another data set ({difference}); choose another --out"
            )
        if path.is_file():
            return path
    splits = _splits(Path(source))
    chosen = split if split in splits or len(splits) > 1 else None
    _choose_split(splits, chosen, Path(source))  # before a folder is made
    write_json(record, wanted)
    unpack(source, out, chosen, classes=classes, progress=progress)
    return path


def _write(path: Path, data: bytes) -> None:
    """Write a file unless it is there; nobody's other file is written over."""
    if not path.exists():
        with atomic_write(path) as handle:
            handle.write(data)
    elif not path.is_file() or path.read_bytes() != data:
        raise InputError(f"'{path}' is there and is something else; choose another folder by --out")


def _splits(source: Path) -> dict[str, _Source]:
    """The splits of a data set, opened."""
    try:
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise InputError(
            f"'{source}' needs the package {error.name!r}: pip install 'pgnn-geo[huggingface]'"
        ) from None
    if not source.exists():
        raise InputError(f"There is no data set '{source}'.")
    try:
        if source.is_dir() and not any(source.glob("**/*.parquet")):
            opened = datasets.load_from_disk(str(source))
            parts = opened if isinstance(opened, dict) else {str(opened.split or "all"): opened}
            return {name: _of_arrow(part) for name, part in parts.items()}
        files = sorted(source.glob("**/*.parquet")) if source.is_dir() else [source]
        groups: dict[str, list[Path]] = {}
        for file in files:
            match = _SPLIT.fullmatch(file.stem)
            # The Hub's own copies of data sets are train/0000.parquet.
            own = file.parent.name if file.stem.isdecimal() else file.stem
            groups.setdefault(match[1] if match else own, []).append(file)
        return {name: _of_parquet(own, pq, datasets) for name, own in groups.items()}
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(
            f"'{source}' cannot be read as a Hugging Face data set: {error}"
        ) from error


def _of_arrow(part: Any) -> _Source:
    def tables(columns: list[str]) -> Iterator[Any]:
        yield from part.select_columns(columns).with_format("arrow").iter(_ROWS)

    return _Source(dict(part.features), tables, len(part))


def _of_parquet(files: Sequence[Path], pq: Any, datasets: Any) -> _Source:
    opened = [pq.ParquetFile(file) for file in files]

    def tables(columns: list[str]) -> Iterator[Any]:
        for file in opened:
            yield from file.iter_batches(_ROWS, columns=columns)

    features = dict(datasets.Features.from_arrow_schema(opened[0].schema_arrow))
    return _Source(features, tables, sum(file.metadata.num_rows for file in opened))


def _choose_split(
    splits: dict[str, _Source], wanted: str | None, source: Path
) -> tuple[str, _Source]:
    names = ", ".join(splits)
    if wanted is None and len(splits) == 1:
        return next(iter(splits.items()))
    if wanted is None:
        raise InputError(f"'{source}' has several splits: name one of {names} by --split")
    if wanted not in splits:
        raise InputError(f"split {wanted!r}: '{source}' has {names}")
    return wanted, splits[wanted]


def _choose(
    features: dict[str, Any],
    wanted: str | None,
    fits: Callable[[str, Any], bool],
    option: str,
    source: Path,
) -> str:
    """The column that is asked for, or the only one that fits."""
    columns = ", ".join(features)
    if wanted is not None:
        if wanted not in features:
            raise InputError(f"--{option} {wanted}: '{source}' has the columns {columns}")
        return wanted
    found = [column for column, feature in features.items() if fits(column, feature)]
    if len(found) != 1:
        said = f"several: {', '.join(found)}" if found else f"none among {columns}"
        raise InputError(
            f"'{source}': which column has the {option}? {said}; name it by --{option}"
        )
    return found[0]


def _is_image(column: str, feature: Any) -> bool:
    if type(feature).__name__ == "Image":
        return True
    if getattr(feature, "dtype", None) in ("binary", "large_binary"):
        return column.casefold() in ("image", "img", "photo", "bytes")
    return isinstance(feature, dict) and "bytes" in feature


def _is_tag(column: str, feature: Any) -> bool:
    inner = _inner(feature)
    if type(inner).__name__ == "ClassLabel":
        return True
    kinds = ("string", "large_string", "int64", "int32", "int16", "int8", "uint8", "bool")
    return column.casefold() in TAG_COLUMNS and getattr(inner, "dtype", None) in kinds


def _inner(feature: Any) -> Any:
    """What a list is of; anything else itself."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return getattr(feature, "feature", feature)


def _class_names(feature: Any) -> list[str] | None:
    names = getattr(_inner(feature), "names", None)
    return None if names is None else [str(name) for name in names]


def _rows(tables: Iterable[Any], image: str, tags: str) -> Iterator[tuple[Any, Any]]:
    for table in tables:
        yield from zip(table.column(image).to_pylist(), table.column(tags).to_pylist(), strict=True)


def _parts(photo: Any) -> tuple[bytes | None, str]:
    """The bytes of a photo and the path that the data set knew it by."""
    if isinstance(photo, bytes):
        return photo, ""
    return (photo.get("bytes"), photo.get("path") or "") if isinstance(photo, dict) else (None, "")


def _named(values: Sequence[Any], names: list[str] | None, where: str) -> list[tuple[str, ...]]:
    """The tags of each row by their names; -1 and null are no tag, as the library has them."""
    rows = [value if isinstance(value, list) else [value] for value in values]
    return [_names_of(row, names, f"{where}, row {number}") for number, row in enumerate(rows)]


def _is_multi_hot(rows: Sequence[Any], names: list[str] | None) -> bool:
    """Whether each row is a 0 or 1 for each class: as numbers of classes that says nothing."""
    if not all(isinstance(row, list) for row in rows):
        return False
    if any(isinstance(each, bool) for row in rows for each in row):
        return True
    size = None if names is None else len(names)
    shaped = all(len(row) == size and set(row) <= {0, 1} for row in rows)
    return shaped and any(1 in row for row in rows)


def _names_of(row: list[Any], names: list[str] | None, where: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for each in row:
        if each is None or each == -1:
            continue
        if isinstance(each, int):
            if names is None or not 0 <= each < len(names):
                raise InputError(
                    f"{where}: class {each} has no name; name the classes 0, 1, ... by --classes"
                )
            each = names[each]
        if '"' in each:
            raise InputError(f"{where}: the class {each!r} has a quote; rename it")
        found[each] = None
    return tuple(found)


def _table(photos: Sequence[tuple[str, str]], tags: Sequence[tuple[str, ...]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "labels", "source"])
    for (photo, origin), own in zip(photos, tags, strict=True):
        cell = ", ".join(f'"{name}"' for name in own)
        writer.writerow([photo, f"[{cell}]", origin])
    return text.getvalue()
