"""Feature maps of a whole data set on disk, computed once and read at random."""

import json
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.io.files import write_json


class FeatureBank:
    """Half-precision feature maps of :math:`M` photos of one size, memory-mapped.

    Reading takes memory only for the rows that are asked for, so a bank may be larger than the
    memory. Two uses: the output of a backbone's frozen stages, which training and labelling would
    otherwise compute again and again; and the final features, which partner groups and propagation
    read in any order.

    Args:
        path (str or PathLike): The bank's ``.npy`` file, as made by :meth:`build`.
        start (int): The first channel that is read. (default: :obj:`0`)
        stop (int, optional): The channel before which reading stops; all if not given.
    """

    def __init__(self, path: str | os.PathLike[str], start: int = 0, stop: int | None = None):
        self.path = Path(path)
        whole = np.load(self.path, mmap_mode="r", allow_pickle=False)
        self._channels = range(whole.shape[1])[start:stop]
        self._array = whole[:, self._channels.start : self._channels.stop]

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes open the file again: a mapped array would be copied into a pickle."""
        return FeatureBank, (self.path, self._channels.start, self._channels.stop)

    def __len__(self) -> int:
        return self._array.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape :obj:`(M, C, h, w)`."""
        return self._array.shape

    def __getitem__(self, indices: Tensor | list[int] | int) -> Tensor:
        """Return float32 features :obj:`[n, C, h, w]` (or :obj:`[C, h, w]` for one index)."""
        rows = indices.tolist() if isinstance(indices, Tensor) else indices
        if isinstance(rows, int):
            return self[[rows]][0]
        # A copy already, as rows are a list. PyTorch converts on all cores, NumPy on one.
        return torch.from_numpy(np.asarray(self._array[rows])).float()

    def channels(self, start: int, stop: int | None = None) -> "FeatureBank":
        """Return the bank of some of the channels; nothing is copied."""
        part = self._channels[start:stop]
        return FeatureBank(self.path, part.start, part.stop)

    def read(self, index: int, rows: slice, columns: slice) -> Tensor:
        """Return a float32 window :obj:`[C, rows, columns]` of one photo's features."""
        return torch.from_numpy(self._array[index, :, rows, columns].astype(np.float32))

    @classmethod
    def build(
        cls,
        path: str | os.PathLike[str],
        batches: Iterable[Tensor],
        count: int,
        key: dict[str, object],
    ) -> "FeatureBank":
        """Open the bank at :obj:`path`, writing it first unless it is there with the same key.

        Args:
            path (str or PathLike): The ``.npy`` file; its key lies beside it as ``.json``.
            batches (iterable of torch.Tensor): Consecutive features :obj:`[b, C, h, w]`,
                :obj:`count` rows in all; consumed only if the bank has to be written.
            count (int): Number of photos :math:`M`.
            key (dict): JSON values that say what the features were made from.

        Raises:
            InputError: If there is no room for the bank where it is to lie; known as soon as the
                first batch is.
        """
        target = Path(path)
        if not cls.is_current(target, key):
            target.with_suffix(".json").unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.part")
            try:
                _write(temporary, batches, count)
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            write_json(target.with_suffix(".json"), key)
        return cls(target)

    @staticmethod
    def is_current(path: str | os.PathLike[str], key: dict[str, object]) -> bool:
        """Whether a finished bank with this key lies at :obj:`path`."""
        sidecar = Path(path).with_suffix(".json")
        if not (Path(path).is_file() and sidecar.is_file()):
            return False
        return json.loads(sidecar.read_text()) == json.loads(json.dumps(key))


def _check_room(folder: Path, size: int) -> None:
    # The file is made sparse: without this, a full disk shows hours later, as a bus error.
    if size > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"Features of {size / 1e9:.1f} GB do not fit into {folder}, which has {free / 1e9:.1f} "
            "GB left. Choose an output folder on another disk, smaller photos (size), or in "
            "training augment='crop', which keeps none."
        )


def _write(path: Path, batches: Iterable[Tensor], count: int) -> None:
    """Write :obj:`count` rows; raises ``ValueError`` if the batches hold another number."""
    array, row = None, 0
    limit = float(np.finfo(np.float16).max)
    for features in batches:
        if array is None:
            shape = (count, *features.shape[1:])
            _check_room(path.parent, 2 * math.prod(shape))
            array = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        values = features.float().clamp(-limit, limit).to(torch.float16)
        array[row : row + len(values)] = values.cpu().numpy()
        row += len(values)
    if array is None or row != count:
        raise ValueError(f"a bank of {count} photos was given features of {row}")
    array.flush()
