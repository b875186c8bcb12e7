"""Feature maps of a whole data set on disk, computed once and read at random."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import write_json

#: Bytes that are written between two notes of how far the file is.
_NOTE_EVERY = 1 << 26


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
    ) -> "FeatureBank":
        """Open the bank at :obj:`path`, writing it first unless it is there with the same key.

        A writing that was cut off, by whatever means, goes on at the photo that was last noted
        down, if its key is the same. A file that is shorter than it should be is made anew.

        Args:
            path (str or PathLike): The ``.npy`` file; its key lies beside it as ``.json``.
            features (callable): Given the number of the first photo that is wanted, an iterable of
                the features :obj:`[b, C, h, w]` of it and all that follow; called only if some are
                missing.
            count (int): Number of photos :math:`M`.
            key (dict): JSON values that say what the features were made from.

        Raises:
            InputError: If there is no room for the bank where it is to lie; known as soon as the
                first batch is.
            ValueError: If the batches hold another number of photos.
        """
        target = Path(path)
        if not cls.is_current(target, key):
            target.with_suffix(".json").unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            part, note = (target.with_name(f".{target.name}{end}") for end in (".part", ".json"))
            _write(part, note, features, count, json.loads(json.dumps(key)))
            os.replace(part, target)
            write_json(target.with_suffix(".json"), key)
            note.unlink()
        return cls(target)

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


def _write(
    part: Path,
    note: Path,
    features: Callable[[int], Iterable[Tensor]],
    count: int,
    key: dict[str, object],
) -> None:
    """Write what is missing of :obj:`count` rows, noting down from time to time how many stand."""
    array: np.memmap[Any, Any] | None
    done, array = 0, _opened(part, "r+")
    found = _read_json(note)
    if array is not None and isinstance(found, dict) and found.get("key") == key:
        done = min(int(found["rows"]), len(array))
    if array is not None and (not done or len(array) != count):
        done, array = 0, None
    row = noted = done
    for batch in features(done) if done < count else ():
        values = _half(batch)
        if array is None:
            part.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            shape = (count, *values.shape[1:])
            _check_room(part.parent, 2 * math.prod(shape))
            array = np.lib.format.open_memmap(part, "w+", np.float16, shape)
        if row + len(values) > count:
            raise ValueError(f"a bank of {count} photos was given features of more")
        array[row : row + len(values)] = values
        row += len(values)
        if (row - noted) * values[0].nbytes >= _NOTE_EVERY:
            array.flush()  # before the note: what it says must stand
            write_json(note, {"key": key, "rows": row})
            noted = row
    if array is None or row != count:
        raise ValueError(f"a bank of {count} photos was given features of {row}")
    array.flush()
    write_json(note, {"key": key, "rows": row})


def _half(features: Tensor) -> NDArray[np.float16]:
    """Return features :obj:`[b, C, h, w]` as they are kept: :obj:`[b, h, w, C]`, finite."""
    limit = float(np.finfo(np.float16).max)
    values = features.float().clamp(-limit, limit).permute(0, 2, 3, 1).to(torch.float16)
    return values.cpu().numpy()
