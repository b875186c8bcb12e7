"""Attention maps of a whole data set on disk: one entry per photo, tagged classes only."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.graph.geometry import patch_class
from pgnn_geo.io.files import atomic_write

PolicyName = Literal["last", "max", "ema"]
POLICIES = get_args(PolicyName)
DTYPES = ("uint8", "float16")
_FORMAT = "pgnn_geo.attention_store/1"


class AttentionStore:
    r"""The previous epoch's attention maps, memory-mapped, in the geometry of the original photos.

    A photo of :math:`H \times W` pixels has one grid of :math:`\lceil H / s \rceil \times
    \lceil W / s \rceil` cells, which spans it exactly, for each of its tags. Maps predicted on an
    augmented crop are un-flipped and pasted back: cells whose center lies in the crop take the
    bilinear value of the map. Reading is the reverse. A cell that was never written reads as 0.

    New values replace the old ones (:obj:`"last"`, the paper's choice), are joined by the maximum
    (:obj:`"max"`, online attention accumulation), or by :math:`m \cdot \mathrm{old} + (1 - m) \cdot
    \mathrm{new}` (:obj:`"ema"`); the first value of a cell is taken as it is.

    The values lie in one flat file beside a JSON index, both written atomically, the index last.
    The file is mapped on first use and again in each process, so data-loader workers may read while
    one process writes; a reader then sees old or new cells. Several writers must write different
    photos. Where ranks share a store, let one create it before the others open it.

    Args:
        path (str or PathLike): The file of values; the index is this name with :obj:`.json` added.
            If both exist they are opened, and must agree with all other arguments.
        image_ids (list of str): The photos.
        sizes (array): Their original sizes (H, W), of shape :math:`(M, 2)`.
        tags (array): Their multi-hot tags, of shape :math:`(M, K)`.
        stride (int): The pixels per cell :math:`s`. (default: :obj:`8`)
        dtype (str): :obj:`"uint8"` (254 steps) or :obj:`"float16"`. (default: :obj:`"uint8"`)
        policy (str): :obj:`"last"`, :obj:`"max"` or :obj:`"ema"`. (default: :obj:`"last"`)
        momentum (float): :math:`m` of :obj:`"ema"`. (default: :obj:`0.5`)

    Raises:
        InputError: If the arguments disagree with each other or with the files at :obj:`path`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        image_ids: Sequence[str],
        sizes: Any,
        tags: Any,
        *,
        stride: int = 8,
        dtype: str = "uint8",
        policy: PolicyName = "last",
        momentum: float = 0.5,
    ) -> None:
        shape = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        multi_hot = np.asarray(tags) > 0
        if not len(image_ids) == len(shape) == len(multi_hot) or multi_hot.ndim != 2:
            raise InputError(
                f"got {len(image_ids)} image_ids, sizes of shape {np.shape(sizes)} and tags of "
                f"shape {np.shape(tags)}: want M, (M, 2) and (M, K)"
            )
        index = {
            "format": _FORMAT,
            "num_classes": multi_hot.shape[1],
            "stride": stride,
            "dtype": dtype,
            "policy": policy,
            "momentum": momentum,
            "image_ids": [str(i) for i in image_ids],
            "sizes": shape.tolist(),
            "tags": [np.flatnonzero(row).tolist() for row in multi_hot],
        }
        self._set(Path(path), index)
        if self.index_path.exists():
            stored = _read_index(self.index_path)
            different = [key for key in index if stored.get(key) != index[key]]
            if different:
                raise InputError(
                    f"{self.index_path} was made with other {', '.join(different)}: "
                    "delete it, or choose another path"
                )
        else:
            with atomic_write(self.path) as handle:
                handle.truncate(self._bytes)  # sparse: takes no space until it is written
            with atomic_write(self.index_path) as handle:
                handle.write(json.dumps(index).encode())
        self._check_file()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "AttentionStore":
        """Open the store at :obj:`path` with everything as it was made.

        Raises:
            InputError: If there is no store, or its files are not whole.
        """
        store = cls.__new__(cls)
        store._set(Path(path), _read_index(_index_path(Path(path))))
        store._check_file()
        return store

    def _set(self, path: Path, index: dict[str, Any]) -> None:
        self.path = path
        self.index_path = _index_path(path)
        self.image_ids: list[str] = index["image_ids"]
        self.num_classes: int = index["num_classes"]
        self.stride: int = index["stride"]
        self.dtype: str = index["dtype"]
        self.policy: str = index["policy"]
        self.momentum: float = index["momentum"]
        if self.policy not in POLICIES:
            raise InputError(f"policy={self.policy!r}: want one of {', '.join(POLICIES)}")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype={self.dtype!r}: want one of {', '.join(DTYPES)}")
        if self.stride < 1 or not 0 <= self.momentum < 1:
            raise InputError(
                f"stride={self.stride}, momentum={self.momentum}: want 1 or more, and [0, 1)"
            )
        self._sizes = np.asarray(index["sizes"], dtype=np.int64).reshape(-1, 2)
        self._tags: list[list[int]] = index["tags"]
        self._rows = {image_id: row for row, image_id in enumerate(self.image_ids)}
        if len(self._rows) != len(self.image_ids):
            twice = next(i for row, i in enumerate(self.image_ids) if self._rows[i] != row)
            raise InputError(f"image_ids: {twice!r} stands twice")
        self._grids = -(-self._sizes // self.stride)
        counts = np.asarray([len(t) for t in self._tags], dtype=np.int64) * self._grids.prod(axis=1)
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        self._data: np.memmap | None = None

    @property
    def _bytes(self) -> int:
        return max(int(self._offsets[-1]) * np.dtype(self.dtype).itemsize, 1)  # mmap wants a byte

    def _check_file(self) -> None:
        have = self.path.stat().st_size if self.path.exists() else -1
        if have != self._bytes:
            raise InputError(
                f"{self.path} is {'missing' if have < 0 else f'{have} bytes long'}, its index "
                f"wants {self._bytes} bytes: delete {self.index_path} and make the maps again"
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({len(self)}, num_classes={self.num_classes}, "
            f"stride={self.stride}, dtype={self.dtype!r}, policy={self.policy!r})"
        )

    @property
    def sizes(self) -> Tensor:
        """The original sizes (H, W) of the photos: :math:`(M, 2)`, long."""
        return torch.from_numpy(self._sizes.copy())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}  # a worker maps the file itself

    def write(
        self,
        images: Sequence[str] | Sequence[int] | Tensor,
        maps: Tensor,
        crop: Tensor | None = None,
        flip: Tensor | None = None,
    ) -> None:
        r"""Paste maps back into their photos.

        Args:
            images (list of str, list of int or torch.Tensor): Image ids, or rows of the store.
            maps (torch.Tensor): The maps :math:`(B, K, h, w)` in [0, 1]; others are clipped.
            crop (torch.Tensor, optional): The box (x1, y1, x2, y2) in pixels of the original photo
                that each map shows, :math:`(B, 4)`; may reach outside it. (default: the whole
                photo)
            flip (torch.Tensor, optional): Whether each map is mirrored, :math:`(B)`.
                (default: none is)

        Raises:
            InputError: If an image is unknown, shapes disagree or a map is not finite.
        """
        rows, crops, flips = self._arguments(images, crop, flip)
        if maps.dim() != 4 or maps.shape[:2] != (len(rows), self.num_classes):
            raise InputError(
                f"maps: got shape {tuple(maps.shape)}, want [{len(rows)}, {self.num_classes}, h, w]"
            )
        maps = maps.detach().float().cpu()
        for row, values, box, mirrored in zip(rows, maps, crops, flips, strict=True):
            tags = self._tags[row]
            if not tags:
                continue
            values = values[tags]
            if not bool(values.isfinite().all()):
                raise InputError(f"maps of image {self.image_ids[row]!r} are not finite")
            ys, xs = self._centers(row)
            y0, y1 = np.searchsorted(ys, [box[1], box[3]])
            x0, x1 = np.searchsorted(xs, [box[0], box[2]])
            if y0 == y1 or x0 == x1:
                continue
            values = values.flip(-1) if mirrored else values
            y = (ys[y0:y1] - box[1]) / (box[3] - box[1])
            x = (xs[x0:x1] - box[0]) / (box[2] - box[0])
            new = _sample(values, y, x).clamp(0, 1).numpy()
            cells = self._cells(row)[:, y0:y1, x0:x1]
            cells[...] = self._encode(self._combine(cells, new))

    def read(
        self,
        images: Sequence[str] | Sequence[int] | Tensor,
        crop: Tensor | None = None,
        flip: Tensor | None = None,
        *,
        size: Sequence[int],
    ) -> Tensor:
        r"""Read maps under a crop and a flip: :math:`(B, K, h, w)`, float32.

        Classes that are not tagged, cells never written and positions outside the photo are 0.

        Args:
            images (list of str, list of int or torch.Tensor): Image ids, or rows of the store.
            crop (torch.Tensor, optional): As in :meth:`write`. (default: the whole photo)
            flip (torch.Tensor, optional): As in :meth:`write`. (default: none)
            size (tuple of int): The height and width :math:`(h, w)` of the result.

        Raises:
            InputError: If an image is unknown or shapes disagree.
        """
        rows, crops, flips = self._arguments(images, crop, flip)
        height, width = (int(n) for n in size)
        out = torch.zeros(len(rows), self.num_classes, height, width)
        for target, row, box, mirrored in zip(out, rows, crops, flips, strict=True):
            tags = self._tags[row]
            if not tags:
                continue
            photo = self._sizes[row]
            # Positions of the output as fractions of the photo.
            y = (box[1] + (np.arange(height) + 0.5) / height * (box[3] - box[1])) / photo[0]
            x = (box[0] + (np.arange(width) + 0.5) / width * (box[2] - box[0])) / photo[1]
            values = _sample(torch.from_numpy(self._decode(self._cells(row))), y, x)
            values *= torch.from_numpy(np.outer((y >= 0) & (y < 1), (x >= 0) & (x < 1)))
            target[tags] = values.flip(-1) if mirrored else values
        return out

    def take(self, other: "AttentionStore", rows: Sequence[int]) -> None:
        """Copy the maps of some photos from a store of the same photos.

        Args:
            other (AttentionStore): That store.
            rows (list of int): The photos.
        """
        for row in rows:
            self._cells(row)[...] = other._cells(row)

    def written(self, images: Sequence[str] | Sequence[int] | Tensor) -> Tensor:
        r"""Whether anything was ever written for each photo: :math:`(B)`, bool."""
        return torch.tensor([bool(_seen(self._cells(row)).any()) for row in self._find(images)])

    def node_class(
        self,
        images: Sequence[str] | Sequence[int] | Tensor,
        grid: int,
        crop: Tensor | None = None,
        flip: Tensor | None = None,
        *,
        size: Sequence[int],
        threshold: float = 0.3,
    ) -> Tensor:
        r"""The class of each grid node: :math:`(B \cdot S^2)`, image by image, row by row, long.

        See :func:`~pgnn_geo.graph.geometry.patch_class`.

        Args:
            images (list of str, list of int or torch.Tensor): Image ids, or rows of the store.
            grid (int): The patches per side :math:`S`.
            crop (torch.Tensor, optional): As in :meth:`write`. (default: the whole photo)
            flip (torch.Tensor, optional): As in :meth:`write`. (default: none)
            size (tuple of int): The feature map's height and width, which decide where patches
                end.
            threshold (float): The least mean. (default: :obj:`0.3`)

        Raises:
            InputError: If an image is unknown or shapes disagree.
        """
        return patch_class(self.read(images, crop, flip, size=size), grid, threshold)

    def flush(self) -> None:
        """Force what was written to disk; the death of the process alone loses nothing."""
        if self._data is not None:
            self._data.flush()

    def _find(self, images: Sequence[str] | Sequence[int] | Tensor) -> list[int]:
        rows = []
        for image in images.tolist() if isinstance(images, Tensor) else images:
            row = self._rows.get(image, -1) if isinstance(image, str) else int(image)
            if not 0 <= row < len(self):
                raise InputError(f"image {image!r} is not among the {len(self)} of {self.path}")
            rows.append(row)
        return rows

    def _arguments(
        self,
        images: Sequence[str] | Sequence[int] | Tensor,
        crop: Tensor | None,
        flip: Tensor | None,
    ) -> tuple[list[int], np.ndarray, list[bool]]:
        rows = self._find(images)
        whole = np.concatenate([np.zeros((len(rows), 2)), self._sizes[rows][:, ::-1]], axis=1)
        crops = whole if crop is None else np.asarray(crop.detach().cpu(), dtype=np.float64)
        flips = [False] * len(rows) if flip is None else torch.as_tensor(flip).bool().tolist()
        if crops.shape != (len(rows), 4) or len(flips) != len(rows):
            raise InputError(
                f"crop of shape {crops.shape} and {len(flips)} flips for {len(rows)} images: "
                "want [B, 4] and [B]"
            )
        for row, box in zip(rows, crops, strict=True):
            if not (box[2] > box[0] and box[3] > box[1]):
                raise InputError(
                    f"crop {box.tolist()} of image {self.image_ids[row]!r}: want x1 < x2, y1 < y2"
                )
        return rows, crops, flips

    def _centers(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        (height, width), (rows, columns) = self._sizes[row], self._grids[row]
        return (np.arange(rows) + 0.5) * height / rows, (np.arange(columns) + 0.5) * width / columns

    def _cells(self, row: int) -> np.ndarray:
        if self._data is None:
            self._data = np.memmap(self.path, dtype=np.uint8, mode="r+")
        item = np.dtype(self.dtype).itemsize
        start, stop = (int(self._offsets[row + i]) * item for i in (0, 1))
        shape = (len(self._tags[row]), *self._grids[row].tolist())
        return self._data[start:stop].view(self.dtype).reshape(shape)

    # Zero bits say "never written", so that a new file needs no filling. A value of zero is
    # therefore kept as 1 (uint8) or as minus zero (float16).
    def _encode(self, values: np.ndarray) -> np.ndarray:
        if self.dtype == "uint8":
            return np.rint(values * 254).astype(np.uint8) + np.uint8(1)
        half = values.astype(np.float16)
        return np.where(half == 0, np.float16(-0.0), half)

    def _decode(self, cells: np.ndarray) -> np.ndarray:
        if self.dtype == "uint8":
            return np.maximum(cells.astype(np.float32) - 1, 0) / np.float32(254)
        return np.abs(cells.astype(np.float32))

    def _combine(self, cells: np.ndarray, new: np.ndarray) -> np.ndarray:
        if self.policy == "last":
            return new
        old = self._decode(cells)
        if self.policy == "max":
            return np.maximum(old, new)
        return np.where(_seen(cells), self.momentum * old + (1 - self.momentum) * new, new)


def _seen(cells: np.ndarray) -> np.ndarray:
    return cells.view(f"u{cells.itemsize}") != 0


def _sample(maps: Tensor, y: np.ndarray, x: np.ndarray) -> Tensor:
    """Bilinear values of maps [n, h, w] at fractions y and x of their height and width."""
    ys, xs = (torch.from_numpy(np.asarray(v, dtype=np.float32)) * 2 - 1 for v in (y, x))
    grid = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], dim=-1)
    out = F.grid_sample(
        maps[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    # Weights carry rounding errors: without this, a cell bleeds some 1e-6 into one never written.
    return out.masked_fill(out < 1e-5, 0)


def _index_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: there is no attention store here") from None
    except ValueError as error:
        raise InputError(f"{path} is not a store's index: {error}") from None
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        raise InputError(f"{path} is not an index of format {_FORMAT}")
    return index
