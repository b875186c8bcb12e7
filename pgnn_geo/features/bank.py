"""Feature maps of a whole data set on disk, computed once and read at random."""

import errno
import glob
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import npy_size, remove_unfinished, write_json
from pgnn_geo.ranks import ALONE, Ranks

#: Bytes, or seconds, between two notes of how far the file is.
_NOTE_EVERY = 1 << 26
_NOTE_SECONDS = 10.0


class Features(Protocol):
    """Feature maps :math:`(M, C, h, w)` that are read some photos at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """:math:`(M, C, h, w)`."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> Tensor: ...


class FeatureBank:
    """Half-precision feature maps of :math:`M` photos of one size, memory-mapped.

    Reading takes memory only for the rows that are asked for, so a bank may be larger than the
    memory. Positions lie one after the other with their channels together: what is read is
    channels-last, and its positions are the rows of a matrix without a copy.

    Args:
        path (str or PathLike): The bank's ``.npy`` file, as made by :meth:`build`.
        start (int): The first channel that is read. (default: :obj:`0`)
        stop (int, optional): The channel before which reading stops; all if not given.
    """

    def __init__(self, path: str | os.PathLike[str], start: int = 0, stop: int | None = None):
        self.path = Path(path)
        whole = np.load(self.path, mmap_mode="r", allow_pickle=False)  # [M, h, w, C]
        self._channels = range(whole.shape[3])[start:stop]
        self._array = whole[..., self._channels.start : self._channels.stop]

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes open the file again: a mapped array would be copied into a pickle."""
        return FeatureBank, (self.path, self._channels.start, self._channels.stop)

    def __len__(self) -> int:
        return int(self._array.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape :obj:`(M, C, h, w)`."""
        count, height, width, channels = self._array.shape
        return count, channels, height, width

    def __getitem__(self, indices: Tensor | list[int] | int) -> Tensor:
        """Return float32 features :obj:`[n, C, h, w]` (or :obj:`[C, h, w]` for one index)."""
        rows = indices.tolist() if isinstance(indices, Tensor) else indices
        if isinstance(rows, int):
            return self[[rows]][0]
        # A copy already, as rows are a list. PyTorch converts on all cores, NumPy on one.
        return torch.from_numpy(np.asarray(self._array[rows])).float().permute(0, 3, 1, 2)

    def channels(self, start: int, stop: int | None = None) -> "FeatureBank":
        """Return the bank of some of the channels; nothing is copied."""
        part = self._channels[start:stop]
        return FeatureBank(self.path, part.start, part.stop)

    def read(self, index: int, rows: slice, columns: slice) -> Tensor:
        """Return a float32 window :obj:`[C, rows, columns]` of one photo's features."""
        window = self._array[index, rows, columns].astype(np.float32)
        return torch.from_numpy(window).permute(2, 0, 1)

    @classmethod
    def build(
        cls,
        path: str | os.PathLike[str],
        features: Callable[[int], Iterable[Tensor]],
        count: int,
        key: dict[str, object],
        ranks: Ranks = ALONE,
        unit: int = 1,
    ) -> "FeatureBank":
        """Open the bank at :obj:`path`, writing it first unless it is there with the same key.

        A writing that was cut off, by whatever means, goes on with the photos that are not noted
        down, if its key is the same. A file that is shorter than it should be is made anew. Several
        processes write their shares into one file, which all of them must see.

        Args:
            path (str or PathLike): The ``.npy`` file; its key lies beside it as ``.json``.
            features (callable): Given the number of the first photo that is wanted, an iterable of
                the features :obj:`[b, C, h, w]` of it and all that follow; called only if some are
                missing.
            count (int): Number of photos :math:`M`.
            key (dict): JSON values that say what the features were made from.
            ranks (Ranks): The processes that share the work. (default: this one alone)
            unit (int): Photos that are worked on at a time, which no two processes share, so that
                they are the same whatever the number of processes. (default: :obj:`1`)

        Raises:
            InputError: If there is no room for the bank where it is to lie, known as soon as the
                first batch is, or it cannot be written.
            ValueError: If the batches hold another number of photos.
        """
        target = Path(path)
        if not ranks.first(lambda: cls.is_current(target, key)):
            part = target.with_name(f".{target.name}.part")
            try:
                if ranks.is_first:
                    _prepare(part, target)
                _write(part, features, count, json.loads(json.dumps(key)), ranks, unit)
                ranks.first(lambda: _finish(part, target, key))
            except OSError as error:
                raise InputError(
                    f"Features cannot be written to {target.parent}: {error}. What is there is "
                    "kept; make room, or choose another folder, and repeat the command."
                ) from error
        return cls(target)

    @staticmethod
    def file_size(count: int, channels: int, side: int) -> int:
        """Return the bytes of the file of a bank of squares, known before it is written."""
        return npy_size((count, side, side, channels), np.float16)

    @staticmethod
    def is_current(path: str | os.PathLike[str], key: dict[str, object]) -> bool:
        """Whether a finished, whole bank with this key lies at :obj:`path`."""
        sidecar = Path(path).with_suffix(".json")
        if not (Path(path).is_file() and sidecar.is_file()):
            return False
        return (
            bool(_read_json(sidecar) == json.loads(json.dumps(key))) and _opened(path) is not None
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _opened(path: str | os.PathLike[str], mode: Any = "r") -> np.memmap[Any, Any] | None:
    """Map a bank's file; :obj:`None` if it is missing, foreign or shorter than it says."""
    try:
        array = np.lib.format.open_memmap(path, mode)
    except (OSError, ValueError):
        return None
    return array if array.dtype == np.float16 and array.ndim == 4 else None


def _check_room(folder: Path, size: int) -> None:
    # The file is made sparse: without this, a full disk shows hours later, as a bus error.
    if size > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"Features of {size / 1e9:.1f} GB do not fit into {folder}, which has {free / 1e9:.1f} "
            "GB left. Choose an output folder on another disk, smaller photos (size), or in "
            "training augment='crop', which keeps none."
        )


def _notes(part: Path) -> list[Path]:
    """Return the notes on how far a file is, those of all processes that have written it."""
    return sorted(part.parent.glob(f"{glob.escape(part.stem)}*.json"))


def _prepare(part: Path, target: Path) -> None:
    """Remove a bank of another key; one that was killed while it was finished is unfinished."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(target.parent)
    target.with_suffix(".json").unlink(missing_ok=True)
    if target.exists() and not part.exists() and _notes(part):
        os.replace(target, part)
    target.unlink(missing_ok=True)


def _finish(part: Path, target: Path, key: dict[str, object]) -> None:
    os.replace(part, target)
    write_json(target.with_suffix(".json"), key)
    for note in _notes(part):
        note.unlink()


def _missing(part: Path, count: int, key: dict[str, object]) -> list[range]:
    """Return which rows are missing; notes that are of no use go, the others become one."""
    array, done = _opened(part), set[int]()
    for note in _notes(part):
        found = _read_json(note)
        if array is not None and isinstance(found, dict) and found.get("key") == key:
            done.update(row for start, stop in found["rows"] for row in range(start, stop))
    if array is None or len(array) != count or not done:
        part.unlink(missing_ok=True)
        done = set()
    notes = _notes(part)
    if done:
        write_json(notes[0], {"key": key, "rows": _runs(sorted(done))})
    for note in notes[bool(done) :]:
        note.unlink()
    return [range(*run) for run in _runs([row for row in range(count) if row not in done])]


def _runs(rows: list[int]) -> list[list[int]]:
    """Return ascending numbers as runs :obj:`[start, stop]`."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][1] == row:
            runs[-1][1] += 1
        else:
            runs.append([row, row + 1])
    return runs


def _share(missing: list[range], ranks: Ranks, unit: int) -> list[range]:
    """Return which of the missing rows are this process' to write."""
    rows = [row for run in missing for row in run]
    own = set(ranks.share(sorted({row // unit for row in rows})))
    return [range(*run) for run in _runs([row for row in rows if row // unit in own])]


def _rows(
    features: Callable[[int], Iterable[Tensor]], runs: list[range], count: int
) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """Yield the features of the rows that are wanted, and the first one's number."""
    for run in runs:
        row = run.start
        for batch in features(run.start):
            values = _half(batch)
            if row + len(values) > count:
                raise ValueError(f"a bank of {count} photos was given features of more")
            yield row, values[: run.stop - row]
            row += len(values)
            if row >= run.stop and run.stop < count:
                break
        if row < run.stop:
            raise ValueError(f"a bank of {count} photos was given features of {row}")


def _create(part: Path, shape: tuple[int, ...] | None) -> None:
    if not part.exists() and shape is not None:
        _check_room(part.parent, npy_size(shape, np.float16))
        np.lib.format.open_memmap(part, "w+", np.float16, shape)


def _write(
    part: Path,
    features: Callable[[int], Iterable[Tensor]],
    count: int,
    key: dict[str, object],
    ranks: Ranks,
    unit: int,
) -> None:
    """Write what is missing of :obj:`count` rows, noting down from time to time which stand."""
    missing = ranks.first(lambda: _missing(part, count, key))
    batches = _rows(features, _share(missing, ranks, unit), count)
    batch = next(batches, None)  # whose shape is that of the file
    shapes = ranks.gather(None if batch is None else (count, *batch[1].shape[1:]))
    shape = next(filter(None, shapes), None)
    if shape is None and missing:
        raise ValueError(f"a bank of {count} photos was given features of 0")
    ranks.first(lambda: _create(part, shape))
    array = _opened(part)
    if array is None:
        raise InputError(
            f"{part} is not there: the processes of one job must see the same folder, on whichever "
            "machines they are."
        )
    # The first process' note goes on with what stood before.
    number = f".{ranks.rank}" if ranks.rank else ""
    note = part.with_name(f"{part.stem}{number}.json")
    found = _read_json(note) if ranks.is_first else None
    runs = [] if found is None else list(found["rows"])
    size, written, noted = 2 * math.prod(array.shape[1:]), 0, time.monotonic()
    # Not through the map: a full disk would be a bus error, and other machines would write over it.
    with open(part, "r+b", buffering=0) as file:

        def put_down() -> None:
            os.fsync(file.fileno())  # before the note: what it says must stand
            write_json(note, {"key": key, "rows": runs})

        try:
            while batch is not None:
                row, values = batch
                file.seek(array.offset + row * size)
                _write_all(file, values.tobytes())
                if runs and runs[-1][1] == row:
                    runs[-1][1] += len(values)
                else:
                    runs.append([row, row + len(values)])
                written, now = written + values.nbytes, time.monotonic()
                if written >= _NOTE_EVERY or now - noted >= _NOTE_SECONDS:
                    put_down()
                    written, noted = 0, now
                batch = next(batches, None)
        except BaseException:
            with suppress(OSError):  # on a full disk the last note stands
                put_down()
            raise
        put_down()
    ranks.wait()


def _write_all(file: Any, data: bytes) -> None:
    while data:
        count = file.write(data)
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[count:]


def _half(features: Tensor) -> NDArray[np.float16]:
    """Return features :obj:`[b, C, h, w]` as they are kept: :obj:`[b, h, w, C]`, finite."""
    limit = float(np.finfo(np.float16).max)
    values = features.float().clamp(-limit, limit).permute(0, 2, 3, 1).to(torch.float16)
    return values.cpu().numpy()
