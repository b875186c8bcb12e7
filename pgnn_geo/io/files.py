"""Atomic file output: a reader sees the old file or the whole new one, never a torn one."""

import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

#: File in a folder of results: images in there, and below it, are never taken for photos.
RESULT_MARK = ".pgnn_geo"

_TEMPORARY = ".tmp-"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside :obj:`path` and rename it to :obj:`path` on success.

    The data is flushed to disk before the rename; on an exception the temporary file is removed and
    whatever stood at :obj:`path` before stays as it was.

    Args:
        path (str or PathLike): The file to write; its folder is made if it is missing.

    Raises:
        OSError: If the folder cannot be made or written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: that of a file may be as long as the system allows.
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes 0600; give what open() would
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str], sync: bool = True) -> Iterator[Path]:
    """Fill a temporary folder beside :obj:`path` and rename it to :obj:`path` on success.

    A folder that stands there is replaced; on an exception it stays as it was.

    Args:
        path (str or PathLike): The folder.
        sync (bool): Flush its files to disk before the rename. (default: :obj:`True`)

    Raises:
        OSError: If a folder cannot be made, written or replaced.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
    try:
        yield temporary
        for file in temporary.rglob("*") if sync else ():
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        os.chmod(temporary, 0o777 & ~_umask())
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
            os.rename(target, old)  # onto an empty folder, which the system allows
            os.rename(temporary, target)
            shutil.rmtree(old)
        else:
            os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def mark_results(folder: str | os.PathLike[str]) -> None:
    """Mark a folder as one of results, see :obj:`RESULT_MARK`; it is made if it is missing.

    Raises:
        OSError: If it cannot be made or written.
    """
    path = Path(folder, RESULT_MARK)
    if not path.is_file():
        with atomic_write(path) as handle:
            handle.write(b"Results of pgnn_geo: images in this folder are not read as photos.\n")


def npy_size(shape: Sequence[int], dtype: DTypeLike) -> int:
    """Return the bytes of the :obj:`.npy` file of an array, known before it is written."""
    header = io.BytesIO()
    about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, about)
    return header.tell() + math.prod(shape) * np.dtype(dtype).itemsize


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write :obj:`value` as indented JSON, atomically."""
    with atomic_write(path) as handle:
        handle.write((json.dumps(value, indent=2) + "\n").encode())


def first_difference(found: Any, wanted: Any, path: str = "") -> str | None:
    """Name the first setting in which two JSON values differ; :obj:`None` if they are the same.

    A setting that is not there is null: what was recorded before there was such a setting.
    """
    if found == wanted:
        return None
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = list({**found, **wanted})
        parts = (
            first_difference(found.get(key), wanted.get(key), f"{path}.{key}".strip("."))
            for key in keys
        )
        return next((part for part in parts if part), None)
    return f"{path}: {found!r} there, {wanted!r} asked for"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
