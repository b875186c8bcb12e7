"""One training of benchmarks/segmentation.py, and what is measured of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from pgnn_geo.app import stage2
from pgnn_geo.app.config import Stage2Config
from pgnn_geo.app.evaluation import evaluate
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.inference.predict import MASKS, PredictConfig, predict_folder
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.files import write_json
from pgnn_geo.io.run_folder import progress
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.training.segmentation_config import SegmentationTrainingConfig

MutualName = Literal["off", "literal", "tags"]
ProtocolName = Literal["par", "scales", "scales-par"]
MEASURES = ("miou", "precision", "recall")
SCALES = (0.75, 1.0, 1.25)

#: How photos are predicted, beside one scale and its mirror image.
PROTOCOLS: dict[str, PredictConfig] = {
    "par": PredictConfig(refine="par"),
    "scales": PredictConfig(SCALES),
    "scales-par": PredictConfig(SCALES, refine="par"),
}


class Row(NamedTuple):
    """What a network is trained on and how, and how labels are rewritten on the way."""

    name: str
    labels: str
    mutual: MutualName = "off"
    uncertain: float | None = 0.5
    true_masks: float = 0.0
    setting: str = ""

    @property
    def title(self) -> str:
        """How tables call it."""
        complement = "" if self.mutual == "off" else f"mutual complement {self.mutual}"
        parts = self.name, self.learnt, self.mixed, complement, self.setting
        return ", ".join(filter(None, parts))

    @property
    def mixed(self) -> str:
        """How tables say which share of the photos is learnt from true masks."""
        return f"{100 * self.true_masks:g} % true masks" if self.true_masks else ""

    @property
    def learnt(self) -> str:
        """How tables say which background is learnt, unless it is the default."""
        if self.uncertain is None:
            return "all background"
        return "" if self.uncertain == 0.5 else f"uncertain {self.uncertain}"

    @property
    def folder(self) -> str:
        """How its folders are called, but for the seed."""
        parts = self.name, self.learnt, self.mixed, self.mutual, self.setting
        return "-".join(filter(None, parts)).replace(" ", "-")


def with_setting(
    common: SegmentationTrainingConfig, values: dict[str, Any]
) -> SegmentationTrainingConfig:
    """Return the configuration of a setting.

    Raises:
        InputError: If there is no hyper-parameter of such a name.
    """
    names = [entry.name for entry in fields(common)]
    if unknown := values.keys() - names:
        raise InputError(
            f"--settings: {', '.join(sorted(unknown))}: want some of {', '.join(names)}"
        )
    return common.changed(**values)


def cell(base: Stage2Config, photos: DataConfig, row: Row, seed: int, out: Path) -> dict[str, Any]:
    """Train and measure one network, unless that is done; return its metrics."""
    config = replace(
        base,
        mutual=row.mutual,
        uncertain=row.uncertain,
        true_masks=row.true_masks,
        train=replace(base.train, seed=seed),
    )
    if row.mutual == "off":  # what has no bearing must not tell folders apart
        config = replace(config, mutual_start=1, mutual_confidence=None)
    folder = out / f"{row.folder}-seed{seed}"
    return stage2.train_and_measure(config.on(photos, row.labels), folder, out / "stems")


def own_masks(photos: DataConfig, row: Row, folder: Path, every: int) -> dict[str, Any]:
    """Measure a network on training photos whose tags it is told, beside what it learnt there."""
    path = folder / "own.json"
    if path.is_file() and (found := json.loads(path.read_text()))["every"] == every:
        return dict(found)
    truth = photos.build(with_masks=True)
    chosen = truth.subset(range(0, len(truth), every))
    matrix = ConfusionMatrix(len(chosen.classes), chosen.classes)
    segmenter = Segmenter.from_pretrained(folder / "segmenter").to("auto")
    for index in progress(range(len(chosen)), "own masks", len(chosen)):
        item = chosen[index]
        image, mask = (item[name].as_subclass(Tensor) for name in ("image", "mask"))
        matrix.update(segmenter.label(image, tags=item["tags"]), mask, item["image_id"])
    labels = None if row.labels == stage2.TRUTH else evaluate(Path(row.labels), chosen).miou
    found = {"every": every, "network": matrix.compute().miou, "labels": labels}
    write_json(path, found)
    return found


def by_protocol(measured: DataConfig, folder: Path, names: Sequence[str]) -> dict[str, float]:
    """Return the mIoU of a trained network by each protocol of prediction."""
    path = folder / "protocols.json"
    found: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    truth = measured.build(with_masks=True)
    paths = [truth.image_path(i) for i in range(len(truth))]
    for name in names:
        if name not in found:
            segmenter = Segmenter.from_pretrained(folder / "segmenter").to("auto")
            out = folder / "protocols" / name
            predict_folder(segmenter, paths, out, PROTOCOLS[name], progress=progress)
            found[name] = evaluate(out / MASKS, truth).miou
            write_json(path, found)
    return {name: found[name] for name in names}


def label_scores(photos: DataConfig, row: Row) -> dict[str, Any] | None:
    """Return the scores of the labels themselves on the photos that they are of."""
    if row.labels == stage2.TRUTH:
        return None
    scores = evaluate(Path(row.labels), photos.build(with_masks=True)).to_dict()
    return {name: scores[name] for name in MEASURES}
