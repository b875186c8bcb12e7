"""One cell of the ablation: a model trained with one seed, and what its maps are worth."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _ablation_plan import Planned, describe
from torch import Tensor

from pgnn_geo.app.pipeline import patch_boxes, train
from pgnn_geo.boxes import PhotoBoxes
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.features.views import View
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.io.files import first_difference, write_json
from pgnn_geo.io.run_folder import claim_folder, progress
from pgnn_geo.labels.maps import attention_maps
from pgnn_geo.metrics import BackgroundSweep, SegmentationScores
from pgnn_geo.training.stems import stem_banks

BACKGROUNDS = tuple(round(0.05 * i, 2) for i in range(1, 20))


class Photos:
    """The photos of an ablation, with and without their masks.

    Args:
        data (DataConfig): Folder, classes and the split that results are reported on.
        tune (str): :obj:`"none"`, or :obj:`"extra"`: the photos of :obj:`train_aug` that are not
            in that split, so that parameters can be chosen off it.
    """

    def __init__(self, data: DataConfig, tune: str = "none") -> None:
        keep: list[int] | None = None
        self.split = data.split
        if tune == "extra":
            reported, known = data.split, set(data.build().image_ids)
            self.split = f"train_aug without {reported}"
            data = replace(data, split="train_aug")
            ids = data.build().image_ids
            keep = [i for i, image_id in enumerate(ids) if image_id not in known]
            if not keep:
                raise InputError(f"--tune extra: every photo of train_aug is in {reported}")

        def build(with_masks: bool) -> TaggedDataset:
            photos = data.build(with_masks=with_masks)
            return photos if keep is None else photos.subset(keep)

        self.tagged = build(with_masks=False)  # what is trained and labelled
        self.truth = build(with_masks=True)  # what is measured against, and nothing else


def boxes_of(planned: Planned, seed: int, photos: Photos, out: Path) -> PhotoBoxes | None:
    """Return the boxes that are a variant's patches, if they are; the CAM's are kept with it."""
    config = planned.seeded(seed)
    if config.boxes is None:
        return None
    folder = out / "boxes"
    if config.boxes.source == "attention":
        folder = train_cell(planned.cam, seed, photos, out)
    return patch_boxes(
        config, photos.tagged, folder / "boxes.json", folder / "model", out / "stems"
    )


def train_cell(
    planned: Planned, seed: int, photos: Photos, out: Path, boxes: PhotoBoxes | None = None
) -> Path:
    """Train one variant with one seed, unless it is there; return its folder."""
    folder = out / "train" / f"{planned.variant}-seed{seed}"
    config = planned.seeded(seed)
    claim_folder(folder, config)
    if not (folder / "model").is_dir():
        stems, settings = out / "stems", config.train_of(planned.model)
        if settings.augment == "window":  # common to all: not to be counted as the first one's
            backbone = config.build_network(planned.model, len(photos.tagged.classes)).backbone
            views = (View(settings.size), View(settings.size, flip=True))
            stem_banks(backbone, photos.tagged, stems, views, settings.precision, progress)
        resumed = (folder / "checkpoints").is_dir()
        start = time.perf_counter()
        train(config, planned.model, folder, photos.tagged, stems, boxes)
        seconds = time.perf_counter() - start
        write_json(folder / "seconds.json", {"train": seconds, "resumed": resumed})
    # As large as the model three times over, and only an unfinished training needs it.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder


def cell_path(planned: Planned, seed: int, out: Path) -> Path:
    """Return the file of a cell's result."""
    return out / "cells" / f"{planned.variant}-seed{seed}-{planned.maps}.json"


def is_done(planned: Planned, seed: int, out: Path) -> bool:
    """Whether a cell's result is there.

    Raises:
        InputError: If it is that of something else.
    """
    path = cell_path(planned, seed, out)
    if not path.is_file():
        return False
    wanted = json.loads(json.dumps(describe(planned, seed)))
    content = json.loads(path.read_text())
    if difference := first_difference({key: content.get(key) for key in wanted}, wanted):
        raise InputError(
            f"{path} is the result of something else ({difference}); choose another --out"
        )
    return True


def measure_cell(
    planned: Planned, seed: int, photos: Photos, out: Path, device: torch.device
) -> dict[str, Any]:
    """Infer the maps of a trained variant, score them and write the result; return it."""
    boxes = boxes_of(planned, seed, photos, out)
    folder = train_cell(planned, seed, photos, out, boxes)
    for left in folder.glob("features-*"):  # gigabytes, by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    model, _, ledger, _ = load_attention_model(folder / "model")
    start = time.perf_counter()
    maps = attention_maps(
        model.to(device), photos.tagged, planned.map_config, out / "stems", folder, progress, boxes
    )
    seconds = time.perf_counter() - start
    by_background = score(maps, photos.truth, (*BACKGROUNDS, planned.background))
    best = max(by_background, key=lambda background: by_background[background].miou)
    timed = folder / "seconds.json"
    result = {
        **describe(planned, seed),
        "split": photos.split,
        "images": len(photos.tagged),
        "classes": list(photos.tagged.classes),
        "supervision": ledger.to_list(),
        "fixed": _plain(planned.background, by_background[planned.background]),
        "oracle": _plain(best, by_background[best]),
        "per_class": by_background[planned.background].to_dict()["per_class"],
        "sweep": [_plain(background, scores) for background, scores in by_background.items()],
        "seconds": {
            **(json.loads(timed.read_text()) if timed.is_file() else {"train": None}),
            "maps": seconds,
        },
    }
    write_json(cell_path(planned, seed, out), result)
    return result


def score(
    maps: list[Tensor], truth: TaggedDataset, backgrounds: tuple[float, ...]
) -> dict[float, SegmentationScores]:
    """Return the scores of maps at constant background scores, ascending."""
    assert truth.tags is not None
    thresholds = sorted(set(backgrounds))
    sweep = BackgroundSweep(len(truth.classes), thresholds, truth.classes)
    for index in progress(range(len(truth)), "measure", len(truth)):
        item = truth[index]
        height, width = item["size"].tolist()
        whole = torch.zeros(len(truth.classes), height, width)
        whole[item["tags"].bool()] = F.interpolate(
            maps[index][None], (height, width), mode="bilinear", align_corners=False
        )[0]
        sweep.update(whole, item["mask"].as_subclass(Tensor))
    return dict(zip(thresholds, sweep.compute(), strict=True))


def _plain(background: float, scores: SegmentationScores) -> dict[str, Any]:
    headline = scores.to_dict()
    return {"background": background} | {
        key: headline[key] for key in ("miou", "precision", "recall")
    }


def remove_stems(out: Path) -> None:
    """Remove what only an unfinished ablation needs: gigabytes."""
    shutil.rmtree(out / "stems", ignore_errors=True)
