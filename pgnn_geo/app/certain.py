"""What stage 2 leaves out of label images: background that their attention maps leave open."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pgnn_geo.app.labelling import MAPS
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.io.files import mark_results, write_json
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import IGNORE, save_mask
from pgnn_geo.io.run_folder import progress
from pgnn_geo.labels.certainty import certain_labels

_RECORD = "ignored.json"


class Maps(NamedTuple):
    """The attention maps that labels were made from, and how."""

    rows: Any  #: maps of the tagged classes of every photo, bytes, one after the other
    counts: list[int]  #: how many of them each photo has
    background: float | None
    power: float | None

    def __iter__(self) -> Iterator[Tensor]:
        """The maps of each photo in :math:`[0, 1]`."""
        start = 0
        for count in self.counts:
            yield torch.from_numpy(self.rows[start : start + count].astype(np.float32) / 255)
            start += count


def maps_beside(labels: Path, dataset: TaggedDataset) -> Maps | None:
    """Return the maps that lie beside label images; nothing of those of other programs.

    Args:
        labels (Path): The folder of the label images.
        dataset (TaggedDataset): The photos.

    Raises:
        InputError: If the maps are not of these photos and tags, or :obj:`labels.json` does not say
            how labels were made from them.
    """
    path, record = labels / MAPS, labels / "labels.json"
    if not (path.is_file() and record.is_file()):
        return None
    remedy = "pass --uncertain null to learn all of their background"
    try:
        made = json.loads(record.read_text())["labels"]
        background, power = made["background"], made["power"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{record} does not say with which background score the labels were made: {error!r}; "
            f"{remedy}"
        ) from error
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    counts = [] if dataset.tags is None else dataset.tags.bool().sum(dim=1).tolist()
    if sum(counts) != len(rows):
        raise InputError(
            f"{path} holds {len(rows)} maps, these photos have {sum(counts)} tags: the labels are "
            f"of other photos or tags. Pass those that they were made for, or {remedy}."
        )
    return Maps(rows, counts, background, power)


def certain_photos(
    dataset: TaggedDataset, maps: Maps, share: float, out: Path, ledger: SupervisionLedger
) -> TaggedDataset:
    """Write label images without their uncertain background, unless that is done.

    See :func:`~pgnn_geo.labels.certainty.certain_labels`.

    Args:
        dataset (TaggedDataset): The photos, with the labels as masks.
        maps (Maps): What the labels were made from.
        share (float): Of the background score, above which background is left out.
        out (Path): Folder for the label images that are learnt; :obj:`labels.json` says what they
            were made from, :obj:`ignored.json`, written last, which share of the pixels is left
            out.
        ledger (SupervisionLedger): What the labels were made from.

    Returns:
        The photos with these label images as masks.
    """
    paths = [out / f"{image_id}.png" for image_id in dataset.image_ids]
    if not (out / _RECORD).is_file():
        mark_results(out)
        pixels = ignored = 0
        for i, attention in enumerate(progress(maps, "certain labels", len(dataset))):
            labels = dataset.read_mask(i)
            labels = certain_labels(labels, attention, share, maps.background, maps.power)
            save_mask(paths[i], labels)
            pixels, ignored = pixels + labels.numel(), ignored + int((labels == IGNORE).sum())
        record = {"classes": list(dataset.classes), "supervision": ledger.to_dict()}
        write_json(out / "labels.json", record)
        write_json(out / _RECORD, {"share": share, "ignored": ignored / pixels})
    return dataset.with_masks(paths)


def ignored_share(out: Path) -> float:
    """Return which share of the pixels :func:`certain_photos` has left out in a folder."""
    return float(json.loads((out / _RECORD).read_text())["ignored"])
