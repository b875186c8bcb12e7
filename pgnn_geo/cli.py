"""The command line: ``pgnn-geo demo | run | train | label | evaluate | doctor``."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

from pgnn_geo.errors import InputError

# Notes to developers of the libraries, not to the person at the terminal.
warnings.filterwarnings("ignore", message=".*module.s. in eval mode.*")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")

try:
    from jsonargparse import auto_cli

    from pgnn_geo import pipeline
    from pgnn_geo.config import DataConfig, LabelConfig, ModelConfig, ModelName, RunConfig
    from pgnn_geo.files import write_json
    from pgnn_geo.labels.inference import MapConfig
    from pgnn_geo.training.attention import AttentionTrainingConfig
except ModuleNotFoundError as error:
    raise SystemExit(
        f"pgnn-geo needs the package {error.name!r}: pip install 'pgnn-geo[train]'"
    ) from None

DataName = Literal["voc", "folder", "shapes"]
NETWORK, TRAINING, MAPS, LABELS = (
    ModelConfig(),
    AttentionTrainingConfig(),
    MapConfig(),
    LabelConfig(),
)


def demo(out: str = "runs/demo", epochs: int = 6, seed: int = 0) -> None:
    """Do the whole job on the embedded data set: no photos, no download, minutes on a CPU.

    Args:
        out: Folder of the run; the data set is made in its folder "shapes".
        epochs: Training epochs of each of the two models.
        seed: Seed of training.
    """
    config = RunConfig(
        data=DataConfig(data="shapes", root=str(Path(out) / "shapes")),
        network=ModelConfig(backbone="vgg_tiny", weights=None, freeze_stages=0, output_stride=8),
        train=AttentionTrainingConfig(epochs=epochs, size=192, lr=1e-3, seed=seed),
        maps=MapConfig(size=192),
    )
    pipeline.run(config, Path(out))


def run(
    root: str,
    data: DataName = "voc",
    split: str = "train",
    classes: str | None = None,
    tags: str = "auto",
    masks: str | None = None,
    out: str = "runs/run",
    network: ModelConfig = NETWORK,
    train: AttentionTrainingConfig = TRAINING,
    maps: MapConfig = MAPS,
    labels: LabelConfig = LABELS,
) -> None:
    """Do the whole job: train the CAM baseline and the P-GNN, label, evaluate. Resumes.

    Args:
        root: Folder of the data set.
        data: "voc" (VOC layout), "folder" (photos and a CSV of tags) or "shapes" (embedded).
        split: Split of VOC: train, trainval, train_aug or val.
        classes: Comma-separated class names, to restrict the task.
        tags: For VOC: auto, annotations, csv, masks or a CSV file; for a folder: its CSV file.
        masks: For a folder: folder of true masks ID.png, used for measuring only.
        out: Folder of the run.
        network: The network.
        train: Hyper-parameters of training.
        maps: How attention maps are inferred.
        labels: How label images are made from them.
    """
    source = DataConfig(data, root, split, classes, tags, masks)
    pipeline.run(RunConfig(source, network, train, maps, labels), Path(out))


def train(
    root: str,
    model: ModelName = "pgnn",
    data: DataName = "voc",
    split: str = "train",
    classes: str | None = None,
    tags: str = "auto",
    out: str = "runs/train",
    network: ModelConfig = NETWORK,
    train: AttentionTrainingConfig = TRAINING,
) -> None:
    """Train one attention model on image tags and write it to OUT/model.pt. Resumes.

    Args:
        root: Folder of the data set.
        model: "pgnn", or "cam" for the baseline without the graph.
        data: "voc", "folder" or "shapes".
        split: Split of VOC.
        classes: Comma-separated class names, to restrict the task.
        tags: Source of the tags, see "run".
        out: Folder for the model, its checkpoints and TensorBoard's log.
        network: The network.
        train: Hyper-parameters of training.
    """
    config = RunConfig(DataConfig(data, root, split, classes, tags), network, train)
    pipeline.claim_folder(Path(out), config)
    pipeline.raise_problems(pipeline.find_problems(config.data, config.network))
    dataset = config.data.build()
    path = pipeline.train(config, model, Path(out), dataset, Path(out) / "stems")
    pipeline.console.print(f"model: {path}")


def label(
    checkpoint: str,
    root: str,
    data: DataName = "voc",
    split: str = "train",
    classes: str | None = None,
    tags: str = "auto",
    out: str = "runs/labels",
    maps: MapConfig = MAPS,
    labels: LabelConfig = LABELS,
) -> None:
    """Write pseudo-labels OUT/ID.png (VOC palette, the photo's own size) of tagged photos.

    Args:
        checkpoint: A model.pt that "train" or "run" wrote.
        root: Folder of the data set.
        data: "voc", "folder" or "shapes".
        split: Split of VOC.
        classes: Comma-separated class names, as the model was trained.
        tags: Source of the tags, see "run".
        out: Folder of the label images.
        maps: How attention maps are inferred.
        labels: How label images are made from them.
    """
    dataset = DataConfig(data, root, split, classes, tags).build()
    pipeline.raise_problems(dataset.check())
    folder = pipeline.label(Path(checkpoint), dataset, Path(out), maps, labels, None)
    pipeline.console.print(f"labels: {folder}")


def evaluate(
    labels: str,
    root: str,
    data: DataName = "voc",
    split: str = "train",
    classes: str | None = None,
    tags: str = "auto",
    masks: str | None = None,
    out: str | None = None,
) -> None:
    """Score a folder of label images against true masks: IoU, precision, recall.

    Args:
        labels: Folder of label images ID.png.
        root: Folder of the data set.
        data: "voc", "folder" or "shapes".
        split: Split of VOC.
        classes: Comma-separated class names; the label images use 1..K in this order.
        tags: Source of the tags, see "run".
        masks: For a folder: folder of true masks ID.png.
        out: JSON file for the figures, if wanted.
    """
    source = DataConfig(data, root, split, classes, tags, masks)
    if not source.has_masks():
        raise InputError("There is nothing to measure against: pass --masks, or a split with masks")
    scores = pipeline.evaluate(Path(labels), source.build(with_masks=True)).to_dict()
    pipeline.console.print(pipeline.score_table({"": scores}, f"{scores['images']} images"))
    if out is not None:
        write_json(out, scores)


def doctor(
    root: str | None = None,
    data: DataName = "voc",
    split: str = "train",
    classes: str | None = None,
    tags: str = "auto",
    masks: str | None = None,
    network: ModelConfig = NETWORK,
) -> None:
    """Check packages, weights and (with --root) every photo, tag and mask; say what to fix.

    Args:
        root: Folder of the data set; without it only packages and weights are checked.
        data: "voc", "folder" or "shapes".
        split: Split of VOC.
        classes: Comma-separated class names, to restrict the task.
        tags: Source of the tags, see "run".
        masks: For a folder: folder of true masks ID.png.
        network: The network whose weights are checked.
    """
    for line in pipeline.describe_machine():
        pipeline.console.print(line, highlight=False, soft_wrap=True)
    source = None if root is None else DataConfig(data, root, split, classes, tags, masks)
    problems = pipeline.find_problems(source, network)
    for problem in problems:
        pipeline.console.print(f"problem: {problem}", highlight=False, markup=False, soft_wrap=True)
    pipeline.console.print(f"{len(problems)} problem(s)" if problems else "no problem found")
    if problems:
        sys.exit(1)


def main(args: list[str] | None = None) -> None:
    """Entry point of the ``pgnn-geo`` command; an error for people ends it with status 2."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # which set INFO when imported
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        commands: list[Any] = [demo, run, train, label, evaluate, doctor]
        auto_cli(commands, args=args, prog="pgnn-geo", as_positional=False)
    except InputError as error:
        print(f"pgnn-geo: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
