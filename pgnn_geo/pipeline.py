"""The whole job: check, train CAM and P-GNN, label, evaluate; a second call resumes it."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.pytorch import seed_everything
from rich.console import Console
from rich.progress import track

from pgnn_geo.checkpoint import load_attention_model, save_attention_model
from pgnn_geo.config import (
    DataConfig,
    LabelConfig,
    ModelConfig,
    ModelName,
    RunConfig,
    SegmentationNetworkConfig,
    SegmentConfig,
)
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.files import first_difference, write_json
from pgnn_geo.labels.inference import MapConfig, attention_maps
from pgnn_geo.labels.seeds import seed_labels
from pgnn_geo.ledger import SupervisionLedger
from pgnn_geo.masks import load_mask, save_mask
from pgnn_geo.metrics import ConfusionMatrix, SegmentationScores
from pgnn_geo.nn.backbones import load_weights, resolve_weights
from pgnn_geo.precision import resolve_precision
from pgnn_geo.training.attention import train_attention
from pgnn_geo.viz.report import label_sheets, score_table

TITLES: dict[ModelName, str] = {"cam": "CAM", "pgnn": "P-GNN"}
console = Console()


def run(config: RunConfig, out: Path) -> dict[str, Any]:
    """Do the whole job in folder :obj:`out`; steps that are done are not done again.

    Leaves :obj:`MODEL/model.pt`, :obj:`MODEL/labels/ID.png`, :obj:`overlays/*.png` and
    :obj:`metrics.json`, MODEL being :obj:`cam` and :obj:`pgnn`.

    Args:
        config (RunConfig): What to do.
        out (Path): The run's folder; made if it is missing.

    Returns:
        The content of :obj:`metrics.json`.

    Raises:
        InputError: If the data or weights cannot be used (everything wrong with them at once), or
            if :obj:`out` holds a run of another configuration.
    """
    claim_folder(out, config)
    if (out / "metrics.json").is_file():
        metrics = json.loads((out / "metrics.json").read_text())
        console.print(f"{out} is done; choose another --out to start anew.")
        show_metrics(metrics)
        return metrics
    with timed("check"):
        raise_problems(find_problems(config.data, config.network))
    dataset = config.data.build()
    for name in get_args(ModelName):
        train(config, name, out / name, dataset, stems=out / "stems")
    for name in get_args(ModelName):
        model, folder = out / name / "model.pt", out / name / "labels"
        label(model, dataset, folder, config.maps_of(name), config.labels_of(name), out / "stems")
    metrics = summarize(config, out, dataset)
    write_json(out / "metrics.json", metrics)
    shutil.rmtree(out / "stems", ignore_errors=True)  # gigabytes that only an unfinished run needs
    show_metrics(metrics)
    console.print(f"masks {out}/pgnn/labels, pictures {out}/overlays, figures {out}/metrics.json")
    return metrics


def claim_folder(out: Path, config: RunConfig | SegmentConfig) -> None:
    """Record :obj:`config` in :obj:`out`, or check that it is the one recorded there."""
    wanted = json.loads(json.dumps(asdict(config)))
    path = out / "config.json"
    try:
        if path.is_file():
            if difference := first_difference(json.loads(path.read_text()), wanted):
                raise InputError(
                    f"{out} holds a run of another configuration ({difference}). "
                    "Choose another --out, or repeat the first command to resume that run."
                )
        else:
            write_json(path, wanted)
    except OSError as error:
        raise InputError(f"Output folder {out} cannot be written: {error}") from error


def describe_machine() -> list[str]:
    """Return one line each on the packages, the devices and the precision that fits them."""
    packages = ("torch", "torchvision", "torch-geometric", "torch-scatter", "lightning")
    lines = []
    for package in packages:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} is not installed")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    lines.append(f"device: {device}, {torch.get_num_threads()} threads")
    return [*lines, f"precision auto: {resolve_precision('auto')}"]


def find_problems(
    data: DataConfig | None, network: ModelConfig | SegmentationNetworkConfig
) -> list[str]:
    """Return everything wrong with photos, tags, masks and weights, one line each."""
    problems = []
    try:
        if data is not None:
            problems += data.build(with_masks=data.has_masks()).check()
    except InputError as error:
        problems.append(str(error))
    try:
        if entry := resolve_weights(network.backbone, network.weights):
            load_weights(entry)
    except InputError as error:
        problems.append(str(error))
    return problems


def raise_problems(problems: list[str], most: int = 20) -> None:
    """Raise one error that lists all problems, if there are any."""
    if problems:
        rest = f"\n  ... and {len(problems) - most} more" if len(problems) > most else ""
        raise InputError(
            f"{len(problems)} problem(s) found before any work was done:\n  "
            + "\n  ".join(problems[:most])
            + rest
        )


def train(
    config: RunConfig, name: ModelName, out: Path, dataset: TaggedDataset, stems: Path
) -> Path:
    """Train one model into :obj:`out/model.pt`, unless it is there; return that path."""
    path = out / "model.pt"
    if path.is_file():
        return path
    with timed(f"train {name}"):
        seed_everything(config.train.seed, workers=True, verbose=False)
        model = config.network.build(name, len(dataset.classes))
        train = config.train_of(name)
        train_attention(model, dataset, out, train, stems, name, console, progress)
        save_attention_model(path, model, dataset.classes, ledger_of(config, dataset))
    return path


def label(
    checkpoint: Path,
    dataset: TaggedDataset,
    out: Path,
    maps: MapConfig,
    labels: LabelConfig,
    stems: Path | None,
) -> Path:
    """Write the pseudo-labels of a trained model as :obj:`out/ID.png`, unless all are there.

    :obj:`out/labels.json`, written last, says what they were made from.

    Raises:
        InputError: If the model was trained for other classes, if :obj:`out` holds labels made
            from something else, or if it cannot be written.
    """
    model, classes, ledger = load_attention_model(checkpoint)
    if classes != dataset.classes:
        raise InputError(
            f"{checkpoint} knows the classes {', '.join(classes)}; "
            f"the data set has {', '.join(dataset.classes)}."
        )
    record = {
        "model": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "images": len(dataset),
        "maps": asdict(maps),
        "labels": asdict(labels),
        "supervision": ledger.to_dict(),
    }
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
        attention = attention_maps(model, dataset, maps, stems, out.parent, progress)
        for index in progress(range(len(dataset)), "write labels", len(dataset)):
            item = dataset[index]
            height, width = item["size"].tolist()
            tagged = item["tags"].nonzero()[:, 0] + 1
            mask = seed_labels(attention[index], (height, width), tagged, **asdict(labels))
            save_mask(out / f"{item['image_id']}.png", mask)
        write_json(done, record)
    return out


def evaluate(labels: Path, truth: TaggedDataset) -> SegmentationScores:
    """Score a folder of label images against the masks of a data set.

    Raises:
        InputError: If a label image is missing, damaged or of another size than its mask.
    """
    matrix = ConfusionMatrix(len(truth.classes), truth.classes)
    for index in progress(range(len(truth)), "evaluate", len(truth)):
        item = truth[index]
        predicted = load_mask(labels / f"{item['image_id']}.png")
        matrix.update(predicted, item["mask"].as_subclass(torch.Tensor), item["image_id"])
    return matrix.compute()


def summarize(config: RunConfig, out: Path, dataset: TaggedDataset) -> dict[str, Any]:
    """Return the content of :obj:`metrics.json`, and draw the overlay sheets."""
    metrics: dict[str, Any] = {}
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
        "supervision": ledger_of(config, dataset).to_list(),
    }


def show_metrics(metrics: dict[str, Any]) -> None:
    """Print CAM and P-GNN side by side, in per cent."""
    if "cam" in metrics:
        columns = {TITLES[name]: metrics[name] for name in get_args(ModelName)}
        console.print(score_table(columns, f"pseudo-labels, {metrics['images']} images"))
    else:
        console.print("No true masks were given, so there is nothing to measure.")
    console.print("supervision: " + "; ".join(metrics["supervision"]))


def ledger_of(config: RunConfig | SegmentConfig, dataset: TaggedDataset) -> SupervisionLedger:
    """Return what a run of :obj:`config` is trained from."""
    entry = resolve_weights(config.network.backbone, config.network.weights)
    source = getattr(dataset, "tag_source", "given")
    return SupervisionLedger(
        tags=f"{source} ({config.data.name})",
        weights=None if entry is None else str(entry),
    )


def progress(iterable: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """Show a progress bar where somebody watches."""
    hidden = not console.is_terminal
    return track(iterable, title, total, console=console, transient=True, disable=hidden)


@contextmanager
def timed(title: str) -> Iterator[None]:
    """Print how long something took."""
    start = time.perf_counter()
    yield
    console.print(f"{title}: {time.perf_counter() - start:.0f} s", highlight=False)
