"""Class-agnostic box proposals by selective search, computed once and kept on disk."""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.views import Progress, no_progress
from pgnn_geo.io.files import atomic_write, first_difference, inside, write_json
from pgnn_geo.ranks import ALONE, Ranks

_VERSION = 1  # of this module's boxes; a cache of another version is not read
_RECORD = "proposals.json"
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class ProposalConfig:
    """How boxes are proposed.

    Args:
        mode (str): :obj:`"fast"` or :obj:`"quality"`, which merges regions in more ways: three to
            four times the boxes and the time. (default: :obj:`"fast"`)
        side (int, optional): Photos whose long side is longer are scaled down to it first and the
            boxes scaled back; :obj:`None` searches every photo as it is. (default: :obj:`400`)
        max_boxes (int): Boxes per photo at most. (default: :obj:`2000`)
        min_side (float): Least width and height of a box as a fraction of the photo's long side.
            (default: :obj:`0.03`)
        seed (int): Of the choice where there are more boxes. (default: :obj:`0`)

    Raises:
        InputError: If a value is out of range.
    """

    mode: Literal["fast", "quality"] = "fast"
    side: int | None = 400
    max_boxes: int = 2000
    min_side: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("fast", "quality"):
            raise InputError(f"mode={self.mode!r}: want 'fast' or 'quality'")
        if (self.side or 1) < 1 or self.max_boxes < 1 or not 0 <= self.min_side < 1:
            raise InputError(
                f"side={self.side}, max_boxes={self.max_boxes}, min_side={self.min_side}: want 1 "
                "or more, 1 or more, and 0 or more but less than 1"
            )


def selective_search(image: Tensor, config: ProposalConfig | None = None) -> Tensor:
    r"""Propose boxes of a photo by `selective search <https://doi.org/10.1007/s11263-013-0620-5>`_.

    A photo gives the same boxes in the same order every time. The order is a seeded random one, so
    that the first :math:`n` boxes are a fair sample of all. OpenCV's own order is drawn anew by
    each call; it is not used.

    Args:
        image (torch.Tensor): RGB photo, uint8.
        config (ProposalConfig, optional): How; default values if not given.

    Shapes:
        - **image:** :math:`(3, H, W)`
        - **output:** :math:`(n, 4)` xyxy, whole pixels of the photo as float32, all different;
          :math:`n` may be 0

    Raises:
        InputError: If :obj:`image` is no such tensor, or OpenCV with its contrib modules is
            missing.
    """
    config = config or ProposalConfig()
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise InputError(f"image: got {image.dtype} {list(image.shape)}, want uint8 [3, H, W]")
    module = _segmentation()
    height, width = image.shape[-2:]
    ratio = 1.0 if config.side is None else min(1.0, config.side / max(height, width))
    h, w = (max(1, round(n * ratio)) for n in (height, width))
    scaled = F.resize(image.as_subclass(Tensor), [h, w], antialias=True)
    search = module.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(scaled.flip(0).permute(1, 2, 0).cpu().numpy()))  # BGR
    if config.mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    found = torch.from_numpy(np.asarray(search.process()).reshape(-1, 4)).double()  # xywh
    scale = torch.tensor([width / w, height / h], dtype=torch.double)
    corners = (found[:, :2] * scale, (found[:, :2] + found[:, 2:]) * scale)
    boxes = torch.cat(corners, dim=1).round()
    least = max(1.0, config.min_side * max(height, width))
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] >= least).all(1)].unique(dim=0)  # and sorts them
    generator = torch.Generator().manual_seed(config.seed)
    return boxes[torch.randperm(len(boxes), generator=generator)[: config.max_boxes]].float()


class ProposalCache:
    """The proposals of a data set's photos on disk, one small file per photo.

    The files lie in a folder of their own for each :obj:`config`, so a cache made another way is
    neither read nor lost; data sets may share a folder, photos being known by their image ids. A
    file is written whole or not at all, and holds a digest of its photo: :meth:`fill` computes
    what is missing and what belongs to a photo that has changed, so a run that was cut off goes
    on where it was.

    Args:
        folder (str or PathLike): Where caches are kept.
        dataset (TaggedDataset): The photos.
        config (ProposalConfig, optional): How boxes are proposed; default values if not given.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        dataset: TaggedDataset,
        config: ProposalConfig | None = None,
    ) -> None:
        self.dataset = dataset.with_transform(None)
        self.config = config or ProposalConfig()
        self.key: dict[str, Any] = {"version": _VERSION, **asdict(self.config)}
        digest = hashlib.sha256(repr(sorted(self.key.items())).encode()).hexdigest()[:8]
        self.folder = Path(folder) / f"selective-search-{self.config.mode}-{digest}"

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}('{self.folder}', photos={len(self.dataset)})"

    def __call__(self, image_id: str) -> Tensor:
        """Return the proposals :obj:`[n, 4]` of a photo, xyxy in its pixels, float32.

        Raises:
            InputError: If there are none on disk yet, or the file is damaged.
        """
        path = self._path(image_id)
        try:
            with np.load(path, allow_pickle=False) as file:
                return torch.from_numpy(file["boxes"].astype(np.float32))
        except FileNotFoundError as error:
            raise InputError(
                f"image '{image_id}' has no proposals in '{self.folder}'; compute them by fill()"
            ) from error
        except _DAMAGED as error:
            raise InputError(
                f"proposals '{path}' cannot be read: {error}; fill() makes them anew"
            ) from error

    def missing(self, photos: Sequence[int] | None = None) -> list[int]:
        """Indices of the photos whose proposals are not there, damaged, or of another photo.

        Args:
            photos (sequence of int, optional): Of these photos; of all if not given.
        """
        photos = range(len(self.dataset)) if photos is None else photos
        with ThreadPoolExecutor() as pool:
            current = pool.map(self._is_current, photos)
            return [index for index, there in zip(photos, current, strict=True) if not there]

    def fill(
        self,
        workers: int | None = None,
        progress: Progress = no_progress,
        ranks: Ranks = ALONE,
    ) -> Self:
        """Compute what :meth:`missing` lists, several photos at a time, and return the cache.

        Args:
            workers (int, optional): Photos at a time; as many as there are processors if not
                given, shared by the processes of a machine. They are threads: OpenCV lets go of
                Python's lock while it searches.
            progress (callable, optional): Progress display.
            ranks (Ranks): The processes that share the photos. (default: this one alone)

        Raises:
            InputError: If a photo cannot be used, OpenCV with its contrib modules is missing, or
                it is of another version than the one that began this cache.
        """
        parts = ranks.gather(self.missing(ranks.share(range(len(self.dataset)))))
        if missing := [index for part in parts for index in part]:
            ranks.first(self._begin)
            own = ranks.share(missing)
            workers = workers or max(1, (os.cpu_count() or 1) // ranks.local_size)
            with ThreadPoolExecutor(workers) as pool:
                for _ in progress(pool.map(self._propose, own), "proposals", len(own)):
                    pass
            ranks.wait()  # for what the others have written
        return self

    def _begin(self) -> None:
        """Write down what makes the boxes, or check that it made those that are there."""
        _segmentation()
        record = {**self.key, "opencv": _opencv_version()}
        path = self.folder / _RECORD
        if path.is_file():
            if difference := first_difference(json.loads(path.read_text()), record):
                raise InputError(
                    f"'{self.folder}' was made otherwise, {difference}; give another folder, or "
                    "delete this one"
                )
        else:
            write_json(path, record)

    def _propose(self, index: int) -> None:
        boxes = selective_search(self.dataset[index]["image"], self.config).numpy()
        small = np.min_scalar_type(int(boxes.max(initial=0)))  # two bytes for most photos
        with atomic_write(self._path(self.dataset.image_ids[index])) as handle:
            np.savez(handle, boxes=boxes.astype(small), photo=np.array(self._digest(index)))

    def _is_current(self, index: int) -> bool:
        try:
            with np.load(self._path(self.dataset.image_ids[index]), allow_pickle=False) as file:
                return bool(file["boxes"].shape[1:] == (4,)) and str(file["photo"]) == (
                    self._digest(index)
                )
        except _DAMAGED:
            return False

    def _digest(self, index: int) -> str:
        return hashlib.sha256(self.dataset.image_path(index).read_bytes()).hexdigest()

    def _path(self, image_id: str) -> Path:
        return inside(self.folder, f"{image_id}.npz")


def check_selective_search() -> None:
    """Raise :class:`InputError` if OpenCV or its contrib modules are missing."""
    _segmentation()


def _segmentation() -> Any:
    """OpenCV's module of selective search."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"Selective search needs OpenCV ({error}): pip install 'pgnn-geo[detect]'"
        ) from error
    if not hasattr(cv2, "ximgproc"):
        raise InputError(
            "Selective search needs OpenCV's contrib modules, which the OpenCV installed here "
            "lacks: uninstall opencv-python and its like, then pip install 'pgnn-geo[detect]'"
        )
    return cv2.ximgproc.segmentation


def _opencv_version() -> str:
    import cv2

    return str(cv2.__version__)
