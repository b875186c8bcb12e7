"""Stage 2 from end to end: train a network on label images, predict, measure; resumes."""

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, seed_everything
from torch import Tensor

from pgnn_geo.app.added_tags import with_added_tags
from pgnn_geo.app.certain import certain_photos, ignored_share, maps_beside
from pgnn_geo.app.config import SegmentConfig
from pgnn_geo.app.drawn import read_drawn, with_drawn
from pgnn_geo.app.evaluation import evaluate
from pgnn_geo.app.labelling import MAPS
from pgnn_geo.app.true_masks import choose_photos, with_true_masks
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.files import inside, mark_results, write_json
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import save_mask
from pgnn_geo.io.run_folder import claim_folder, console, progress, recording, timed
from pgnn_geo.precision import Precision, autocast, check_devices, default_device
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.mutual import MutualComplement
from pgnn_geo.training.preflight import find_problems, ledger_of, raise_problems
from pgnn_geo.training.segmentation import SegmentationData, train_segmentation
from pgnn_geo.viz.report import label_sheets, score_table

#: In place of a label folder: the true masks.
TRUTH = "truth"

_TITLE = "segmenter"


def segment(config: SegmentConfig, out: Path, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Do stage 2 in folder :obj:`out`; steps that are done are not done again.

    Leaves :obj:`segmenter`, :obj:`metrics.json`, the labels that were learnt where those given
    have maps (:obj:`labels/certain`), with the mutual complement :obj:`labels/epoch-001` and so on,
    and where there are true masks :obj:`predictions/ID.png` and
    :obj:`overlays/*.png`.

    Args:
        config (SegmentConfig): What to do.
        out (Path): The folder; made if it is missing.
        ranks (Ranks): The processes that share the photos, with a batch each in training.
            (default: this one alone)

    Returns:
        The content of :obj:`metrics.json`.

    Raises:
        InputError: If photos, labels or weights cannot be used (everything wrong with them at
            once), or if :obj:`out` holds a training of another configuration.
    """
    done = ranks.first((out / "metrics.json").is_file)
    with recording(out / "cost.json") if ranks.is_first else nullcontext():
        metrics = train_and_measure(config, out, ranks=ranks)
    if done:
        console.print(f"{out} is done; choose another --out to start anew.")
    show_metrics(metrics)
    if not done:
        console.print(f"segmenter {out}/segmenter, figures {out}/metrics.json")
    return metrics


def train_and_measure(
    config: SegmentConfig, out: Path, stems: Path | None = None, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Do what :func:`segment` does, without showing the result.

    Args:
        config (SegmentConfig): What to do.
        out (Path): The folder; made if it is missing.
        stems (Path, optional): Where outputs of frozen stages are kept for other trainings on the
            same photos; in :obj:`out`, until training ends, if not given.
        ranks (Ranks): See :func:`segment`. (default: this one alone)
    """
    recorded = config
    if config.labels != TRUTH:  # so that both folders can be moved together
        recorded = replace(config, labels=os.path.relpath(config.labels, out))
    if metrics := ranks.first(lambda: _finished(recorded, out)):
        return metrics
    with timed("check labels"):
        ranks.first(lambda: _check(config, ranks))
        dataset, ledger = labelled_photos(config)
        maps = None
        if config.uncertain is not None and config.labels != TRUTH:
            maps = maps_beside(Path(config.labels), dataset)
            if maps is None:
                console.print(f"no {MAPS} beside the labels: all of their background is learnt")
        drawn = None if config.drawn is None else read_drawn(dataset, Path(config.drawn))
        chosen = None
        if config.true_masks:
            chosen = choose_photos(dataset, config.data, config.true_masks)
    # Not before: a mistake leaves nothing behind.
    ranks.first(lambda: claim_folder(out, recorded))
    ranks.check_shared(out / "config.json")
    ignored = 0.0
    if maps is not None and config.uncertain is not None:
        with timed("certain labels"):
            folder = out / "labels" / "certain"
            certain = partial(certain_photos, dataset, maps, config.uncertain, folder, ledger)
            ranks.first(lambda: certain().mask_path(0))
            dataset = certain()  # of what is there
        ignored = ignored_share(folder)
        console.print(f"{100 * ignored:.1f} % of the pixels are left out as uncertain background")
    if drawn is not None:
        by_hand = partial(with_drawn, dataset, drawn, out / "labels" / "drawn")
        ranks.first(lambda: by_hand().mask_path(0))
        dataset, ledger = by_hand(), ledger.merged(drawn.ledger)
    if chosen is not None:
        true = partial(with_true_masks, dataset, *chosen, out / "labels" / "true")
        ranks.first(lambda: true().mask_path(0))
        dataset = true()
        masks = f"true masks of {len(chosen[1])} of {len(dataset)} photos ({config.data.name})"
        ledger = ledger.merged(SupervisionLedger(masks=masks))
    with timed("train segmenter"):
        segmenter = _train(config, dataset, ledger, out, stems, ranks)
    metrics = _measure(recorded, segmenter, config.measured, out, ranks) | {"ignored": ignored}
    segmenter.metrics = metrics.get("segmenter")
    if ranks.is_first:
        segmenter.save_pretrained(out / "segmenter")
        write_json(out / "metrics.json", metrics)
    return metrics


def _finished(config: SegmentConfig, out: Path) -> dict[str, Any] | None:
    """Return what a finished training has measured, if it is that of the folder."""
    if (out / "config.json").is_file():
        claim_folder(out, config)
    if not (out / "metrics.json").is_file():
        return None
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return metrics


def _check(config: SegmentConfig, ranks: Ranks) -> None:
    """Raise everything that is wrong before any work is done."""
    check_devices(config.train.devices, ranks.size)
    dataset, _ = labelled_photos(config)
    problems = find_problems(config.measured, config.source, config.train.devices)
    raise_problems(dataset.check() + problems)
    if config.uncertain is not None and config.labels != TRUTH:
        maps_beside(Path(config.labels), dataset)
    if config.true_masks:
        choose_photos(dataset, config.data, config.true_masks)


def labelled_photos(config: SegmentConfig) -> tuple[TaggedDataset, SupervisionLedger]:
    """Return the training photos with their labels as masks, and what a training on them uses.

    Raises:
        InputError: If there is no such folder, its labels are of other classes, or there are no
            true masks where they are asked for.
    """
    photos = config.data.build()
    full = ledger_of(config.source, photos, config.data.name)
    if config.labels == TRUTH:
        if config.mutual != "off":
            raise InputError("The mutual complement rewrites pseudo-labels, not true masks.")
        for name in ("true_masks", "drawn"):
            if getattr(config, name):
                raise InputError(f"{name} is for pseudo-labels; --labels truth learns true masks")
        if not config.data.has_masks():
            raise InputError("There are no true masks to train on: pass a folder of labels.")
        dataset = config.data.build(with_masks=True)
        source = f"true masks ({config.data.name})"
        return dataset, SupervisionLedger(weights=full.weights, masks=source)
    folder = Path(config.labels)
    if not folder.is_dir():
        raise InputError(f"There is no folder of label images {folder}.")
    photos = with_added_tags(photos, folder)
    dataset = photos.with_masks([folder / f"{i}.png" for i in photos.image_ids])
    used = full if config.mutual == "tags" else SupervisionLedger(weights=full.weights)
    return dataset, _label_ledger(folder, dataset.classes).merged(used)


def show_metrics(metrics: dict[str, Any]) -> None:
    """Print the scores, in per cent, and what they were made from."""
    if "segmenter" in metrics:
        show_scores(metrics["segmenter"], metrics["split"])
    else:
        console.print("Nothing was measured: no photos with true masks were given.")
    console.print("supervision: " + "; ".join(metrics["supervision"]))


def show_scores(scores: dict[str, Any], split: str | None) -> None:
    """Print the scores of a segmenter on a split, or on the training photos, in per cent."""
    title = f"segmentation, {split or 'photos'}, {scores['images']} images"
    console.print(score_table({_TITLE: scores}, title))


def _train(
    config: SegmentConfig,
    dataset: TaggedDataset,
    ledger: SupervisionLedger,
    out: Path,
    stems: Path | None,
    ranks: Ranks,
) -> Segmenter:
    seed_everything(config.train.seed, workers=True, verbose=False)
    network = config.build_network(len(dataset.classes))
    data = SegmentationData(dataset, config.train)
    callbacks: list[Callback] = []
    if config.mutual != "off":
        truth = config.data.build(with_masks=True) if config.data.has_masks() else None
        complement = MutualComplement(
            data,
            out / "labels",
            rule=config.mutual,
            start=config.mutual_start,
            confidence=config.mutual_confidence,
            truth=truth,
            ledger=ledger,
            progress=progress,
        )
        callbacks.append(complement)
    train_segmentation(
        network, data, out, config.train, callbacks, "segment", console, progress, stems, ranks
    )
    return Segmenter(network, dataset.classes, ledger, side=config.train.size)


def _measure(
    config: SegmentConfig,
    segmenter: Segmenter,
    measured: DataConfig | None,
    out: Path,
    ranks: Ranks,
) -> dict[str, Any]:
    """Predict the photos that have true masks, and return the content of :obj:`metrics.json`."""
    metrics: dict[str, Any] = {}
    if measured is not None:
        truth, folder = measured.build(with_masks=True), out / "predictions"
        with timed("predict"):
            _predict(segmenter, truth, folder, config.train.precision, ranks)
        scores = evaluate(folder, truth, progress, ranks)
        metrics = {"segmenter": scores.to_dict(), "images": scores.images}
        if ranks.is_first:
            label_sheets(out / "overlays", truth, {_TITLE: folder})
    split = None if measured is None or not measured.has_splits else measured.split
    return {
        **metrics,
        "split": split,
        "classes": list(segmenter.classes),
        "labels": config.labels,
        "mutual": config.mutual,
        "uncertain": config.uncertain,
        "true_masks": config.true_masks,
        "drawn": config.drawn,
        "prediction": {"size": segmenter.side, "scales": [1.0], "flip": True},
        "seed": config.train.seed,
        "supervision": segmenter.ledger.to_list(),
    }


def _predict(
    segmenter: Segmenter,
    photos: TaggedDataset,
    folder: Path,
    precision: Precision,
    ranks: Ranks,
) -> None:
    """Write the predicted labels of every photo, at its own size, as :obj:`folder/ID.png`."""
    segmenter.network.to(default_device())
    ranks.first(lambda: mark_results(folder))
    own = ranks.share(range(len(photos)))
    with autocast(precision, segmenter.network.device):  # its converted weights are kept
        for index in progress(own, "predict", len(own)):
            item = photos[index]
            image = item["image"].as_subclass(Tensor)
            save_mask(
                inside(folder, f"{item['image_id']}.png"),
                segmenter.label(image, precision=precision),
            )


def _label_ledger(folder: Path, classes: tuple[str, ...]) -> SupervisionLedger:
    """Return what a folder of label images says it was made from."""
    path = folder / "labels.json"
    if not path.is_file():
        return SupervisionLedger(masks=f"label images of unknown origin ({folder.name})")
    try:
        record = json.loads(path.read_text())
        ledger = SupervisionLedger.from_dict(record["supervision"])
        names = tuple(record.get("classes", classes))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} does not say what the labels were made from: {error!r}"
        ) from error
    if names != classes:
        raise InputError(
            f"{folder} holds labels of the classes {', '.join(names)}; the data set has "
            f"{', '.join(classes)}. Pass --classes in that order."
        )
    return ledger
