"""Masks of folders of photos: decoded ahead of the network, written behind it, resumable."""

import errno
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pgnn_geo.datasets import load_photo
from pgnn_geo.datasets.photo_file import count_pixels
from pgnn_geo.datasets.photos import Photo, StrPath, find_photos, read_photo_tags
from pgnn_geo.errors import InputError
from pgnn_geo.features.views import Progress, no_progress
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.files import (
    atomic_write,
    first_difference,
    inside,
    mark_results,
    remove_unfinished,
    write_json,
)
from pgnn_geo.io.masks import save_mask
from pgnn_geo.labels.refine import build_refinement
from pgnn_geo.nn.photo_views import MAX_SIDE, check_scales, shrink
from pgnn_geo.nn.view_average import ViewAverage
from pgnn_geo.precision import Precision, autocast
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.viz.overlays import overlay

MASKS, OVERLAYS, PROBABILITIES = "masks", "overlays", "probabilities"

#: Pixels of the photos decoded ahead of the network, and of those not written yet; a larger photo
#: goes through alone.
_PIXELS_AHEAD = 48_000_000
_PHOTOS_AHEAD = 16
_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class PredictConfig:
    """How masks of photos are predicted.

    Args:
        scales (sequence of float): Multiples of the size at which the segmenter sees photos; they
            are averaged.
        flip (bool): Average with the mirrored photo.
        max_side (int): Longer side to which larger photos are scaled down first; bounds the memory.
        refine (str): "par" or "crf" to fit the masks to the edges in the photo, "none", or one of
            your own, see :func:`~pgnn_geo.labels.build_refinement`.
        precision (str): Of the network: "auto", "32-true", "bf16-mixed" or "16-mixed".
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = True
    max_side: int = MAX_SIDE
    refine: str = "none"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_scales(self.scales, self.max_side)
        build_refinement(self.refine)  # which raises if it cannot be had


class Predicted(NamedTuple):
    """What :func:`predict_folder` did."""

    photos: list[Photo]  #: those with a mask
    new: int  #: how many of them had none before
    problems: list[str]  #: one line for each photo that could not be read


def predict_folder(
    segmenter: Segmenter,
    photos: Sequence[StrPath],
    out: StrPath,
    config: PredictConfig | None = None,
    overlays: bool = False,
    probabilities: bool = False,
    tags: StrPath | None = None,
    progress: Progress = no_progress,
    max_pixels: int | None = None,
    ranks: Ranks = ALONE,
) -> Predicted:
    r"""Write :obj:`masks/ID.png` of every photo: VOC palette, the photo's own size, upright.

    A second call goes on where the first ended. Memory does not grow with the number of photos:
    beside the network at :obj:`max_side` it is at most about 15 bytes for each pixel of the largest
    photo, or of 96 million pixels where photos are small.

    Args:
        segmenter (Segmenter): The network.
        photos (sequence of str or PathLike): JPEG or PNG files and folders of them. An :obj:`ID`
            is the path below the folder that all of them share, without the extension.
        out (str or PathLike): Folder of the results. :obj:`predict.json` says what they were made
            from.
        config (PredictConfig, optional): How; default values if not given.
        overlays (bool): Also write :obj:`overlays/ID.png`, the photo with its mask painted over.
            (default: :obj:`False`)
        probabilities (bool): Also write :obj:`probabilities/ID.npz` with the array
            :obj:`probabilities` :obj:`[K + 1, h, w]` in float16, at the photo's size or, if it is
            larger, at :obj:`max_side`. (default: :obj:`False`)
        tags (str or PathLike, optional): CSV with the columns :obj:`image,labels` of what is in
            each photo; other classes are left out. (default: :obj:`None`)
        progress (callable, optional): Progress display.
        max_pixels (int, optional): Largest photo that is read, see
            :func:`~pgnn_geo.datasets.load_photo`.
        ranks (Ranks): The processes that share the photos. (default: this one alone)

    Raises:
        InputError: If there are no photos, the tags do not fit, or :obj:`out` cannot be written or
            holds masks made otherwise. A photo that cannot be read does not raise: see
            :obj:`Predicted.problems`.
    """
    config, out = config or PredictConfig(), Path(out)
    segmenter.check_precision(config.precision)
    root, found = find_photos(photos, [out / name for name in (MASKS, OVERLAYS, PROBABILITIES)])
    hot = None if tags is None else read_photo_tags(tags, root, found, segmenter.classes)
    ranks.first(lambda: _claim(out, segmenter, root, config, tags))
    ranks.check_shared(out / "predict.json")
    steps = _Steps(segmenter, out, config, overlays, probabilities, max_pixels)
    missing = ranks.first(lambda: [i for i, p in enumerate(found) if not steps.are_done(p)])
    todo = ranks.share(missing)
    problems: dict[int, str] = {}

    def finish(i: int, _: int, task: Future[None]) -> None:
        """Wait for files; a name that is too long there does not stop the other photos."""
        try:
            task.result()
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            problems[i] = f"photo '{found[i].path}': its name is too long for results in {out}"

    try:
        for folder in steps.folders:
            mark_results(folder)
        # One context around all photos: it keeps the weights that it converts.
        with ThreadPoolExecutor(_THREADS) as pool, autocast(config.precision, steps.device):
            writing: deque[tuple[int, int, Future[None]]] = deque()
            decoded = _read_ahead([found[i] for i in todo], steps.read, max_pixels)
            for i, photo in zip(todo, progress(decoded, "predict", len(todo)), strict=True):
                if isinstance(photo, str):
                    problems[i] = photo
                    continue
                labels, maps = steps.predict(photo, None if hot is None else hot[i])
                task = pool.submit(steps.write, found[i], photo.whole, labels, maps)
                writing.append((i, labels.numel(), task))
                while len(writing) > _PHOTOS_AHEAD or sum(w[1] for w in writing) > _PIXELS_AHEAD:
                    finish(*writing.popleft())
            while writing:
                finish(*writing.popleft())
    except OSError as error:
        raise InputError(f"Output folder {out} cannot be written: {error}") from error
    problems = {i: text for each in ranks.gather(problems) for i, text in each.items()}
    done = [photo for i, photo in enumerate(found) if i not in problems]
    return Predicted(done, len(missing) - len(problems), list(problems.values()))


class _Decoded(NamedTuple):
    small: Tensor  # what the network sees
    size: tuple[int, int]
    whole: Tensor | None  # for the overlay


class _Steps:
    """What is done with each photo: read, predict, write."""

    def __init__(
        self,
        segmenter: Segmenter,
        out: Path,
        config: PredictConfig,
        overlays: bool,
        probabilities: bool,
        max_pixels: int | None,
    ) -> None:
        self.max_pixels = max_pixels
        self.segmenter, self.config = segmenter, config
        self.device = segmenter.network.device
        self.refine = build_refinement(config.refine)
        self.masks = out / MASKS
        self.overlays = out / OVERLAYS if overlays else None
        self.probabilities = out / PROBABILITIES if probabilities else None

    @property
    def folders(self) -> list[Path]:
        """Folders of the images that are wanted."""
        return [folder for folder in (self.masks, self.overlays) if folder is not None]

    def files(self, photo: Photo) -> tuple[Path, Path | None, Path | None]:
        """Return the files of the mask, the overlay and the probabilities, if they are wanted."""
        name = photo.photo_id
        return (
            self.masks / f"{name}.png",
            self.overlays and self.overlays / f"{name}.png",
            self.probabilities and self.probabilities / f"{name}.npz",
        )

    def are_done(self, photo: Photo) -> bool:
        """Whether all that is wanted is there."""
        return all(path is None or path.is_file() for path in self.files(photo))

    def read(self, photo: Photo) -> _Decoded | str:
        """Decode a photo; what is wrong with it is returned, for the report at the end."""
        try:
            image = load_photo(photo.path, max_pixels=self.max_pixels)
        except InputError as error:
            return str(error)
        height, width = image.shape[1:]
        whole = None if self.overlays is None else image
        return _Decoded(shrink(image, self.config.max_side), (height, width), whole)

    @torch.no_grad()
    def predict(self, photo: _Decoded, tags: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the label image and, if they are wanted, the probabilities."""
        config, size = self.config, tuple(photo.small.shape[1:])
        views = self.segmenter.views(
            photo.small,
            config.scales,
            config.flip,
            config.precision,
            config.max_side,
            tags,
            self.segmenter.side,
        )
        if self.refine is not None or size != photo.size:
            views = views.at(size)
        if self.refine is not None:
            pixels = photo.small[None].to(self.device)
            maps = self.refine(pixels, views.maps[0][None])[0]
            views = ViewAverage([maps], views.label_ids, views.num_labels, logits=False)
        wanted = self.probabilities is not None
        return views.labels(photo.size).cpu(), (
            views.probabilities(size).half().cpu() if wanted else None
        )

    def write(
        self, photo: Photo, image: Tensor | None, labels: Tensor, maps: Tensor | None
    ) -> None:
        """Write the files that are not there yet, the mask last."""
        for folder in filter(None, (self.masks, self.overlays, self.probabilities)):
            inside(folder, photo.photo_id)
        mask, painted, arrays = self.files(photo)
        if arrays is not None and maps is not None and not arrays.is_file():
            with atomic_write(arrays) as handle:
                np.savez_compressed(handle, probabilities=maps.numpy())
        if painted is not None and image is not None and not painted.is_file():
            for top in range(0, len(labels), 256):  # in strips: painting takes floats
                rows = slice(top, top + 256)
                image[:, rows] = overlay(image[:, rows], labels[rows])
            with atomic_write(painted) as handle:
                pixels = image.permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(handle, format="PNG", compress_level=1)
        if not mask.is_file():
            save_mask(mask, labels)


def _read_ahead(
    photos: Sequence[Photo],
    read: Callable[[Photo], _Decoded | str],
    max_pixels: int | None = None,
) -> Iterator[_Decoded | str]:
    """Yield photos in order, some decoded ahead in threads, as many as the memory is for."""
    waiting: deque[tuple[int, Future[_Decoded | str]]] = deque()
    used = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for photo in photos:
                pixels = count_pixels(photo.path, max_pixels)
                while waiting and (len(waiting) >= _PHOTOS_AHEAD or used + pixels > _PIXELS_AHEAD):
                    freed, future = waiting.popleft()
                    yield future.result()
                    used -= freed
                waiting.append((pixels, pool.submit(read, photo)))
                used += pixels
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            pool.shutdown(cancel_futures=True)


def _claim(
    out: Path, segmenter: Segmenter, root: Path, config: PredictConfig, tags: StrPath | None
) -> None:
    """Record in :obj:`out` what masks are made from, or check that it is what is recorded."""
    digest = hashlib.sha256(json.dumps(segmenter.network.config, sort_keys=True).encode())
    for value in segmenter.network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    record: dict[str, Any] = {
        "photos": str(root),
        "tags": None if tags is None else os.path.abspath(tags),
        "settings": {**asdict(config), "side": segmenter.side},
        "model": digest.hexdigest(),
        "classes": segmenter.classes,
        "supervision": segmenter.ledger.to_dict(),
    }
    record = json.loads(json.dumps(record))
    path = out / "predict.json"
    try:
        remove_unfinished(out)
        if not path.is_file():
            write_json(path, record)
        elif difference := first_difference(json.loads(path.read_text()), record):
            raise InputError(
                f"{out} holds masks made from something else ({difference}). "
                "Choose another folder, or repeat the first settings to go on there."
            )
    except OSError as error:
        raise InputError(f"Output folder {out} cannot be written: {error}") from error
