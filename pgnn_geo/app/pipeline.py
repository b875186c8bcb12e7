"""The whole job: train CAM and P-GNN, label, train on the labels, evaluate; resumes."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch import seed_everything
from torch import Tensor

from pgnn_geo.app import stage2
from pgnn_geo.app.config import LabelConfig, ModelName, RunConfig, SegmentConfig
from pgnn_geo.app.config_changes import LabelConfigChanges, MapConfigChanges, label_defaults
from pgnn_geo.app.evaluation import evaluate
from pgnn_geo.boxes.patches import describe_boxes, make_boxes, patch_problems, read_boxes
from pgnn_geo.boxes.photo_boxes import PhotoBoxes
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.io.checkpoint import load_attention_model, save_attention_model
from pgnn_geo.io.files import first_difference, write_json
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import save_mask
from pgnn_geo.io.run_folder import claim_folder, console, progress, timed
from pgnn_geo.labels.maps import attention_maps
from pgnn_geo.labels.refine import DenseCRF
from pgnn_geo.labels.seeds import refined_labels
from pgnn_geo.nn import PGNN
from pgnn_geo.precision import default_device
from pgnn_geo.training.attention import train_attention
from pgnn_geo.training.job import ledger_of
from pgnn_geo.training.preflight import find_problems, raise_problems
from pgnn_geo.viz.report import label_sheets, score_table

TITLES: dict[ModelName, str] = {"cam": "CAM", "pgnn": "P-GNN"}


def run(config: RunConfig, out: Path) -> dict[str, Any]:
    """Do the whole job in folder :obj:`out`; steps that are done are not done again.

    Leaves :obj:`MODEL/model.pt`, :obj:`MODEL/labels/ID.png`, :obj:`overlays/*.png` and
    :obj:`metrics.json`, MODEL being :obj:`cam` and :obj:`pgnn`, and in :obj:`segmentation` what
    :func:`~pgnn_geo.app.stage2.segment` leaves, trained on the labels of :obj:`pgnn`. If the
    patches are boxes, also :obj:`boxes.json`, see :func:`~pgnn_geo.boxes.patches.make_boxes`.

    Args:
        config (RunConfig): What to do.
        out (Path): The run's folder; made if it is missing.

    Returns:
        The content of :obj:`metrics.json`.

    Raises:
        InputError: If the data or weights cannot be used (everything wrong with them at once), or
            if :obj:`out` holds a run of another configuration.
    """
    if (out / "config.json").is_file():
        claim_folder(out, config)
    if (out / "metrics.json").is_file():
        metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
        console.print(f"{out} is done; choose another --out to start anew.")
        _show_pseudo_labels(metrics)
        _show_segmentation(metrics)
        return metrics
    segment = config.segment_on(out / "pgnn" / "labels")
    with timed("check"):
        raise_problems(_problems(config, segment))
    claim_folder(out, config)  # not before: a mistake leaves nothing behind
    dataset = config.data.build()
    stems, boxes = out / "stems", None
    cam = train(config, "cam", out / "cam", dataset, stems)
    if config.boxes is not None:
        boxes = make_boxes(config, dataset, out / "boxes.json", cam, stems)
    train(config, "pgnn", out / "pgnn", dataset, stems, boxes)
    for name in get_args(ModelName):
        model, folder = out / name / "model.pt", out / name / "labels"
        maps, labels = config.maps_of(name), config.labels_of(name)
        used = None if boxes is None or name == "cam" else out / "boxes.json"
        label(model, dataset, folder, maps, labels, stems, used)
    shutil.rmtree(stems, ignore_errors=True)  # gigabytes that only stage 1 needs
    metrics = summarize(config, out, dataset, boxes)
    _show_pseudo_labels(metrics)
    if segment is not None:
        metrics |= _segmentation(metrics, stage2.train_and_measure(segment, out / "segmentation"))
    write_json(out / "metrics.json", metrics)
    _show_segmentation(metrics)
    console.print(f"masks {out}/pgnn/labels, pictures {out}/overlays, figures {out}/metrics.json")
    if segment is not None:
        console.print(f"segmenter {out}/segmentation/segmenter")
    return metrics


def train(
    config: RunConfig,
    name: ModelName,
    out: Path,
    dataset: TaggedDataset,
    stems: Path,
    boxes: PhotoBoxes | None = None,
) -> Path:
    """Train one model into :obj:`out/model.pt`, unless it is there; return that path.

    Args:
        config (RunConfig): How.
        name (str): Which one.
        out (Path): The folder; made if it is missing.
        dataset (TaggedDataset): Photos with tags.
        stems (Path): Where outputs of frozen stages are kept for reuse.
        boxes (PhotoBoxes, optional): The P-GNN's patches, if :obj:`config` has them for boxes.
    """
    path = out / "model.pt"
    if path.is_file():
        return path
    with timed(f"train {name}"):
        seed_everything(config.train.seed, workers=True, verbose=False)
        model = config.build_network(name, len(dataset.classes))
        train = config.train_of(name)
        train_attention(model, dataset, out, train, stems, name, console, progress, boxes)
        save_attention_model(path, model, dataset.classes, _ledger(config, dataset, boxes))
    return path


def label(
    checkpoint: Path,
    dataset: TaggedDataset,
    out: Path,
    maps: MapConfigChanges,
    labels: LabelConfigChanges,
    stems: Path | None,
    boxes: Path | None = None,
) -> Path:
    """Write the pseudo-labels of a trained model as :obj:`out/ID.png`, unless all are there.

    :obj:`out/labels.json`, written last, says what they were made from.

    Args:
        checkpoint (Path): The model's file.
        dataset (TaggedDataset): Photos with tags.
        out (Path): The folder; made if it is missing.
        maps (MapConfig): How attention maps are inferred; a value of :obj:`None` is the default of
            such a model, see :func:`~pgnn_geo.app.config_changes.label_defaults`.
        labels (LabelConfig): How label images are made from them, in the same way.
        stems (Path, optional): Where outputs of frozen stages are kept for reuse.
        boxes (Path, optional): COCO results with the photos' boxes, for a model whose patches they
            are.

    Raises:
        InputError: If the model was trained for other classes or other patches, if :obj:`out` holds
            labels made from something else, if it cannot be written, or if the refinement cannot be
            had.
    """
    model, classes, ledger = load_attention_model(checkpoint)
    if classes != dataset.classes:
        raise InputError(
            f"{checkpoint} knows the classes {', '.join(classes)}; "
            f"the data set has {', '.join(dataset.classes)}."
        )
    map_config, label_config = label_defaults(model, maps, labels)
    label_config.build_refinement()  # which raises now, not after the maps
    patches = _patches(model, checkpoint, boxes, dataset)
    if patches is not None:
        ledger = ledger.merged(patches.ledger)
    record: dict[str, Any] = {
        "model": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "images": len(dataset),
        "classes": classes,
        "maps": asdict(map_config),
        "labels": asdict(label_config),
        "supervision": ledger.to_dict(),
    }
    if boxes is not None:
        record["boxes"] = hashlib.sha256(boxes.read_bytes()).hexdigest()
    record = json.loads(json.dumps(record))
    done = out / "labels.json"
    if done.is_file():
        if difference := first_difference(json.loads(done.read_text()), record):
            raise InputError(
                f"{out} holds labels made from something else ({difference}). "
                "Choose another folder."
            )
        return out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Output folder {out} cannot be written: {error}") from error
    with timed(f"label {out}"):
        model.to(default_device())
        attention = attention_maps(model, dataset, map_config, stems, out.parent, progress, patches)
        masks = label_images(dataset, attention, label_config)
        for image_id, mask in zip(dataset.image_ids, masks, strict=True):
            save_mask(out / f"{image_id}.png", mask)
        write_json(done, record)
    return out


def _patches(
    model: PGNN, checkpoint: Path, boxes: Path | None, dataset: TaggedDataset
) -> PhotoBoxes | None:
    """Return the boxes that a model needs for its patches, if it does."""
    if model.needs_boxes and boxes is None:
        raise InputError(
            f"The patches of {checkpoint} are boxes: pass the photos' with --boxes FILE (COCO "
            "results; those of a run are its boxes.json)."
        )
    if boxes is None:
        return None
    if not model.needs_boxes:
        raise InputError(f"The patches of {checkpoint} are no boxes; leave out --boxes {boxes}.")
    return read_boxes(boxes, dataset)


def label_images(
    dataset: TaggedDataset, attention: list[Tensor], config: LabelConfig
) -> Iterator[Tensor]:
    """Yield the label image of every photo at its own size; a CRF runs on all cores.

    Args:
        dataset (TaggedDataset): Photos with tags.
        attention (list of Tensor): Maps of their tagged classes, see
            :func:`~pgnn_geo.labels.attention_maps`.
        config (LabelConfig): How label images are made from them.
    """

    def photos() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for index in progress(range(len(dataset)), "write labels", len(dataset)):
            item = dataset[index]
            tagged = item["tags"].nonzero()[:, 0] + 1
            yield item["image"].as_subclass(Tensor), attention[index], tagged

    refinement = config.build_refinement(workers=os.cpu_count() or 1)
    with refinement if isinstance(refinement, DenseCRF) else nullcontext():
        yield from refined_labels(photos(), refinement, config.background, config.power)


def summarize(
    config: RunConfig, out: Path, dataset: TaggedDataset, boxes: PhotoBoxes | None = None
) -> dict[str, Any]:
    """Return what :obj:`metrics.json` says of stage 1, and draw the overlay sheets."""
    metrics: dict[str, Any] = {}
    if config.boxes is not None and boxes is not None:
        metrics["boxes"] = describe_boxes(boxes, config.boxes)
    truth = config.data.build(with_masks=True) if config.data.has_masks() else None
    if truth is not None:
        for name in get_args(ModelName):
            metrics[name] = evaluate(out / name / "labels", truth).to_dict()
    folders = {TITLES[name]: out / name / "labels" for name in get_args(ModelName)}
    label_sheets(out / "overlays", truth or dataset, folders)
    return {
        **metrics,
        "split": config.data.split if config.data.data != "folder" else None,
        "images": len(dataset),
        "classes": list(dataset.classes),
        "background": {name: asdict(config.labels_of(name)) for name in get_args(ModelName)},
        "seed": config.train.seed,
        "supervision": _ledger(config, dataset, boxes).to_list(),
    }


def _ledger(
    config: RunConfig, dataset: TaggedDataset, boxes: PhotoBoxes | None
) -> SupervisionLedger:
    """Return what a model is trained from, its patches included."""
    ledger = ledger_of(config, dataset)
    return ledger if boxes is None else ledger.merged(boxes.ledger)


def _problems(config: RunConfig, segment: SegmentConfig | None) -> list[str]:
    """Return everything that would stop the run at any of its steps, one line each."""
    problems = find_problems(config.data, config.network)
    if not problems:
        problems += patch_problems(config)
    for labels in (config.labels, config.cam_labels):
        try:
            labels.build_refinement()
        except InputError as error:
            problems.append(str(error))
    if segment is not None:
        measured = None
        try:
            measured = segment.measured
        except InputError as error:
            if str(error) not in problems:  # something wrong with the data set as a whole
                problems.append(f"eval_split: {error}")
        photos = None if measured == config.data else measured
        problems += find_problems(photos, segment.network, segment.train.devices)
    return list(dict.fromkeys(problems))


def _segmentation(stage1: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Return what :obj:`metrics.json` says of stage 2."""
    scores = {"pseudo_labels": stage1["pgnn"]} if "pgnn" in stage1 else {}
    if "segmenter" in result:
        scores["segmentation"] = result["segmenter"]
    return {**scores, "segmentation_split": result["split"], "supervision": result["supervision"]}


def _show_pseudo_labels(metrics: dict[str, Any]) -> None:
    """Print CAM and P-GNN side by side, in per cent."""
    if "cam" in metrics:
        columns = {TITLES[name]: metrics[name] for name in get_args(ModelName)}
        where = metrics["split"] or "photos"
        console.print(score_table(columns, f"pseudo-labels, {where}, {metrics['images']} images"))
    else:
        console.print("No true masks were given, so the pseudo-labels are not measured.")


def _show_segmentation(metrics: dict[str, Any]) -> None:
    """Print the scores of stage 2, and what everything was made from."""
    if "segmentation" in metrics:
        stage2.show_scores(metrics["segmentation"], metrics["segmentation_split"])
    console.print("supervision: " + "; ".join(metrics["supervision"]))
