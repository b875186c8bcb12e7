"""The whole job: train CAM and P-GNN, label, train on the labels, evaluate; resumes."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

from pgnn_geo.app import stage2
from pgnn_geo.app.config import ModelName, RunConfig, SegmentConfig
from pgnn_geo.app.evaluation import evaluate
from pgnn_geo.app.labelling import label
from pgnn_geo.app.report import read_run, write_report
from pgnn_geo.boxes.detection import DetectConfig
from pgnn_geo.boxes.inference import DetectionConfig
from pgnn_geo.boxes.patches import describe_boxes, make_boxes, patch_problems
from pgnn_geo.boxes.photo_boxes import PhotoBoxes
from pgnn_geo.boxes.training.detector import DetectorTrainingConfig
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.listing import first_of
from pgnn_geo.errors import InputError, note
from pgnn_geo.io.checkpoint import save_attention_model
from pgnn_geo.io.files import write_json
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.run_folder import claim_folder, console, progress, recording, timed
from pgnn_geo.labels.evidence import StepName
from pgnn_geo.labels.labeller import Labeller
from pgnn_geo.precision import default_device
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.attention import train_attention
from pgnn_geo.training.preflight import find_problems, ledger_of, raise_problems
from pgnn_geo.viz.report import label_sheets, score_table

TITLES: dict[ModelName, str] = {"cam": "CAM", "pgnn": "P-GNN"}


def run(
    config: RunConfig, out: Path, cache: Path | None = None, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Do the whole job in folder :obj:`out`; steps that are done are not done again.

    Leaves :obj:`MODEL/labels/ID.png`, MODEL being :obj:`pgnn` or :obj:`cam`, and the model that
    made them, the folder :obj:`MODEL/model`; that of the frozen flow is :obj:`pgnn/model`. Also
    :obj:`overlays/*.png`, :obj:`metrics.json`, :obj:`cost.json` (what each stage cost),
    :obj:`report.html`, which shows all of it, and in :obj:`segmentation` what
    :func:`~pgnn_geo.app.stage2.segment` leaves. If the patches are boxes, also :obj:`boxes.json`,
    see :func:`~pgnn_geo.boxes.patches.make_boxes`.

    Args:
        config (RunConfig): What to do.
        out (Path): The run's folder; made if it is missing.
        cache (Path, optional): Folder where features are kept for other runs; they lie in
            :obj:`out` until stage 1 is done if it is not given.
        ranks (Ranks): The processes that share stage 1; what follows is done by the first one
            alone, which leaves the group. (default: this one alone)

    Returns:
        The content of :obj:`metrics.json`, of stage 1 alone in the other processes.

    Raises:
        InputError: If the data or weights cannot be used (everything wrong with them at once), or
            if :obj:`out` holds a run of another configuration.
    """
    labels, stage2_config = str(out / config.model / "labels"), config.segment
    segment = None if stage2_config is None else stage2_config.on(config.data, labels)
    if metrics := ranks.first(lambda: _started(config, segment, out)):
        return metrics
    ranks.check_shared(out / "config.json")
    with recording(out / "cost.json") if ranks.is_first else nullcontext():
        metrics = _stages(config, out, segment, cache, ranks)
    if not ranks.is_first:
        return metrics
    write_json(out / "metrics.json", metrics)
    _show_segmentation(metrics)
    _report(out)
    console.print(
        f"masks {out}/{config.model}/labels, figures {out}/metrics.json, report {out}/report.html"
    )
    if segment is not None:
        console.print(f"segmenter {out}/segmentation/segmenter")
    return metrics


def _report(out: Path) -> None:
    """Write the report of a finished run, unless it is there."""
    if not (out / "report.html").is_file():
        write_report([read_run(out)], out / "report.html", progress)


def _stages(
    config: RunConfig, out: Path, segment: SegmentConfig | None, cache: Path | None, ranks: Ranks
) -> dict[str, Any]:
    """Do both stages and return the content of :obj:`metrics.json`."""
    dataset = config.data.build()
    features, boxes = cache or out / "features", None
    if config.flow == "frozen":
        _frozen(config, out, dataset, features, ranks)
    else:
        boxes = _trained(config, out, dataset, features, ranks)
    if cache is None and ranks.is_first:
        shutil.rmtree(features, ignore_errors=True)  # gigabytes that only stage 1 needs
    metrics = summarize(config, out, dataset, boxes, ranks)
    _show_pseudo_labels(metrics)
    if not ranks.dissolve():
        return metrics
    if segment is not None:
        result = stage2.train_and_measure(segment, out / "segmentation")
        metrics |= _segmentation(metrics, config.model, result)
    return metrics


def _started(config: RunConfig, segment: SegmentConfig | None, out: Path) -> dict[str, Any] | None:
    """Check everything and claim the folder; return what a finished run has measured."""
    if (out / "config.json").is_file():
        claim_folder(out, config)
    if (out / "metrics.json").is_file():
        metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
        console.print(f"{out} is done; choose another --out to start anew.")
        _say_unlabelled(config, out)
        _show_pseudo_labels(metrics)
        _show_segmentation(metrics)
        _report(out)
        return metrics
    with timed("check"):
        raise_problems(_problems(config, segment))
    claim_folder(out, config)  # not before: a mistake leaves nothing behind
    return None


def _say_unlabelled(config: RunConfig, out: Path) -> None:
    """Say which photos have come since a run was finished."""
    try:
        photos = config.data.build().image_ids
    except InputError:  # photos that are no longer there take nothing from what is done
        return
    labels = out / config.model / "labels"
    if new := [name for name in photos if not (labels / f"{name}.png").is_file()]:
        note(
            f"{out} was done without photos that are there now: {first_of(new)}; 'pgnn-geo label "
            f"--checkpoint {out / config.model / 'model'}' labels them, another --out learns from "
            "them as well"
        )


def _frozen(
    config: RunConfig, out: Path, dataset: TaggedDataset, cache: Path, ranks: Ranks
) -> None:
    """Make the labels of the frozen flow: one model, of which the baseline is the first step."""
    model = fit(config, out / "pgnn" / "model", dataset, cache, ranks)
    for name in config.names:
        step: StepName | None = "evidence" if name == "cam" else None
        label(model, dataset, out / name / "labels", cache=cache, step=step, ranks=ranks)


def fit(
    config: RunConfig, path: Path, dataset: TaggedDataset, cache: Path, ranks: Ranks = ALONE
) -> Path:
    """Fit the model of evidence into folder :obj:`path`, unless it is there; return that path.

    Args:
        config (RunConfig): How.
        path (Path): The folder of the model; made if it is missing.
        dataset (TaggedDataset): Photos with tags.
        cache (Path): Where the features are kept.
        ranks (Ranks): The processes that share the photos. (default: this one alone)
    """
    if ranks.first(path.is_dir):
        return path
    labels: dict[str, Any] = {
        config.evidence.last_step: asdict(config.labels),
        "evidence": asdict(config.cam_labels),
    }
    with timed("features and evidence"):
        labeller = Labeller.fit(
            config.source,
            dataset,
            cache,
            ledger_of(config.source, dataset, config.data.name),
            config.features,
            config.evidence,
            labels,
            default_device(),
            progress,
            ranks,
        )
        ranks.first(lambda: labeller.save(path))
    return path


def _trained(
    config: RunConfig, out: Path, dataset: TaggedDataset, cache: Path, ranks: Ranks
) -> PhotoBoxes | None:
    """Make the labels of the trained flow; return the boxes that are its patches, if they are."""
    boxes, wanted = None, list(config.names)
    if config.boxes is not None and config.boxes.source == "attention" and "cam" not in wanted:
        wanted.insert(0, "cam")  # its maps are where the boxes are cut out
    for name in wanted:
        if name == "pgnn" and config.boxes is not None:
            cam = model_path(out / "cam")
            boxes = patch_boxes(config, dataset, out / "boxes.json", cam, cache, ranks)
        train(config, name, out / name, dataset, cache, boxes, ranks)
    for name in config.names:
        used = None if boxes is None or name == "cam" else out / "boxes.json"
        model = model_path(out / name)
        label(model, dataset, out / name / "labels", cache=cache, boxes=used, ranks=ranks)
    return boxes


def patch_boxes(
    config: RunConfig,
    dataset: TaggedDataset,
    path: Path,
    cam: Path,
    stems: Path,
    ranks: Ranks = ALONE,
) -> PhotoBoxes | None:
    """Return the boxes that are a run's patches, made into :obj:`path` unless they are there.

    Args:
        config (RunConfig): How; without boxes there are none.
        dataset (TaggedDataset): The photos.
        path (Path): Where the boxes are kept.
        cam (Path): The run's CAM.
        stems (Path): Where outputs of frozen stages are kept for reuse.
        ranks (Ranks): The processes that share the photos. (default: this one alone)
    """
    if config.boxes is None:
        return None
    maps, detector = config.train.completion_maps, detector_config(config)
    return make_boxes(config.boxes, dataset, path, cam, stems, maps, detector, ranks)


def detector_config(config: RunConfig) -> DetectConfig:
    """Return how a detector of the patches is trained: by default, but on the network's backbone.

    For other settings, ``pgnn-geo detect`` writes a file of boxes.
    """
    train, of_backbone = config.train, ("backbone", "weights", "freeze_stages", "output_stride")
    return DetectConfig(
        data=config.data,
        network={name: config.network[name] for name in of_backbone},
        train=DetectorTrainingConfig(
            seed=train.seed, precision=train.precision, workers=train.workers
        ),
        boxes=DetectionConfig(precision=train.precision),
    )


def train(
    config: RunConfig,
    name: ModelName,
    out: Path,
    dataset: TaggedDataset,
    stems: Path,
    boxes: PhotoBoxes | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Train one model into folder :obj:`out/model`, unless it is there; return that path.

    Args:
        config (RunConfig): How.
        name (str): Which one.
        out (Path): The folder; made if it is missing.
        dataset (TaggedDataset): Photos with tags.
        stems (Path): Where outputs of frozen stages are kept for reuse.
        boxes (PhotoBoxes, optional): The P-GNN's patches, if :obj:`config` has them for boxes.
        ranks (Ranks): The processes that share every batch. (default: this one alone)
    """
    path = model_path(out)
    if ranks.first(path.exists):
        return path
    with timed(f"train {name}"):
        seed_everything(config.train.seed, workers=True, verbose=False)
        model = config.build_network(name, len(dataset.classes))
        train = config.train_of(name)
        train_attention(model, dataset, out, train, stems, name, console, progress, boxes, ranks)
        labelling = {"maps": asdict(config.maps_of(name)), "labels": asdict(config.labels_of(name))}
        ledger = _ledger(config, dataset, boxes)
        ranks.first(lambda: save_attention_model(path, model, dataset.classes, ledger, labelling))
    return path


def model_path(out: Path) -> Path:
    """Return where the model of a training is: a folder, or the file of a version up to 0.2.0."""
    old = out / "model.pt"
    return old if old.is_file() else out / "model"


def summarize(
    config: RunConfig,
    out: Path,
    dataset: TaggedDataset,
    boxes: PhotoBoxes | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Return what :obj:`metrics.json` says of stage 1, and draw the overlay sheets."""
    metrics: dict[str, Any] = {}
    if config.boxes is not None and boxes is not None:
        metrics["boxes"] = describe_boxes(boxes, config.boxes)
    truth = config.data.build(with_masks=True) if config.data.has_masks() else None
    if truth is not None:
        for name in config.names:
            metrics[name] = evaluate(out / name / "labels", truth, progress, ranks).to_dict()
    if ranks.is_first:
        folders = {TITLES[name]: out / name / "labels" for name in config.names}
        label_sheets(out / "overlays", truth or dataset, folders)
    return {
        **metrics,
        "split": config.data.split if config.data.has_splits else None,
        "images": len(dataset),
        "classes": list(dataset.classes),
        "background": {name: asdict(config.labels_of(name)) for name in config.names},
        "seed": config.train.seed,
        "supervision": _ledger(config, dataset, boxes).to_list(),
    }


def _ledger(
    config: RunConfig, dataset: TaggedDataset, boxes: PhotoBoxes | None
) -> SupervisionLedger:
    """Return what a model is trained from, its patches included."""
    ledger = ledger_of(config.source, dataset, config.data.name)
    return ledger if boxes is None else ledger.merged(boxes.ledger)


def _problems(config: RunConfig, segment: SegmentConfig | None) -> list[str]:
    """Return everything that would stop the run at any of its steps, one line each."""
    problems = find_problems(config.data, config.source)
    if not problems and config.boxes is not None:
        problems += patch_problems(config.boxes, config.data)
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
        problems += find_problems(photos, segment.source, segment.train.devices)
    return list(dict.fromkeys(problems))


def _segmentation(
    stage1: dict[str, Any], model: ModelName, result: dict[str, Any]
) -> dict[str, Any]:
    """Return what :obj:`metrics.json` says of stage 2."""
    scores = {"pseudo_labels": stage1[model]} if model in stage1 else {}
    if "segmenter" in result:
        scores["segmentation"] = result["segmenter"]
    return {**scores, "segmentation_split": result["split"], "supervision": result["supervision"]}


def _show_pseudo_labels(metrics: dict[str, Any]) -> None:
    """Print what was measured side by side, in per cent."""
    columns = {title: metrics[name] for name, title in TITLES.items() if name in metrics}
    if columns:
        where, measured = metrics["split"] or "photos", next(iter(columns.values()))["images"]
        console.print(score_table(columns, f"pseudo-labels, {where}, {measured} images"))
    else:
        console.print("No true masks were given, so the pseudo-labels are not measured.")


def _show_segmentation(metrics: dict[str, Any]) -> None:
    """Print the scores of stage 2, and what everything was made from."""
    if "segmentation" in metrics:
        stage2.show_scores(metrics["segmentation"], metrics["segmentation_split"])
    console.print("supervision: " + "; ".join(metrics["supervision"]))
