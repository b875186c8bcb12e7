"""Atomic file output: a reader sees the old file or the whole new one, never a torn one."""

import io
import json
import math
import os
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from pgnn_geo.errors import InputError

#: File in a folder of results: images in there, and below it, are never taken for photos.
RESULT_MARK = ".pgnn_geo"

_TEMPORARY = ".tmp-"

#: Seconds after which what a process of another machine has not finished is given up.
_GIVEN_UP = 24 * 3600


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
    descriptor, temporary = tempfile.mkstemp(prefix=temporary_prefix(), dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes 0600; give what open() would
        os.replace(temporary, target)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as of a full disk
            error.filename = os.fspath(target)
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
    temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=target.parent))
    try:
        yield temporary
        for file in temporary.rglob("*") if sync else ():
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        os.chmod(temporary, 0o777 & ~_umask())
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=target.parent))
            os.rename(target, old)  # onto an empty folder, which the system allows
            os.rename(temporary, target)
            shutil.rmtree(old)
        else:
            os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_names(names: Iterable[str]) -> None:
    """Check that names stay below the folder that they are put into.

    Raises:
        InputError: If one is empty or absolute, or has a part ``..``.
    """
    for name in names:
        path = PurePath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise InputError(
                f"image id {name!r} is no path below a folder; want such as 'trip/1', without '..'"
            )


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """Return :obj:`folder/name`, a file to be written that does not leave the folder.

    Raises:
        InputError: If it does, by its name or by a link in the folder.
    """
    check_names([name])
    path = Path(folder, name)
    if not path.parent.resolve().is_relative_to(Path(folder).resolve()):
        raise InputError(
            f"{path} would be written to {path.parent.resolve()}, where a link in {folder} leads; "
            "remove the link, or choose another folder"
        )
    return path


def temporary_prefix() -> str:
    """How the names of temporary files begin, by which :func:`remove_unfinished` knows them."""
    return f"{_TEMPORARY}{socket.gethostname()[:32]}-{os.getpid()}-"


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files and folders below a folder that killed processes have left.

    Those of processes that are still there stay, and those of other machines for a day.
    """
    for here, folders, files in os.walk(folder):
        for name in [name for name in (*folders, *files) if name.startswith(_TEMPORARY)]:
            path = Path(here, name)
            if _is_left(path):
                if name in folders:
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        folders[:] = [name for name in folders if not name.startswith(_TEMPORARY)]


def _is_left(path: Path) -> bool:
    host, _, process = path.name.removeprefix(_TEMPORARY).rpartition("-")[0].rpartition("-")
    if host == socket.gethostname()[:32] and process.isdecimal() and sys.platform != "win32":
        try:
            os.kill(int(process), 0)  # asks only whether it is there
        except ProcessLookupError:
            return True
        except OSError:  # it is, and somebody else's
            return False
        return False
    try:
        return time.time() - path.stat().st_mtime > _GIVEN_UP
    except OSError:  # somebody else has just finished or removed it
        return False


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


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file that may come from anywhere: a pipe or a device may never end.

    Raises:
        OSError: If it cannot be read, or is no regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"'{path}' is no regular file")
    return open(path, "rb")


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON that may come from anywhere.

    Raises:
        ValueError: If it is none, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


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
