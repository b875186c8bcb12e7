"""The command line, ``pgnn-geo COMMAND``: each command is a function."""

import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pgnn_geo.errors import InputError

# Notes to developers of the libraries, not to the person at the terminal.
warnings.filterwarnings("ignore", message=".*module.s. in eval mode.*")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")

try:
    import torch
    from jsonargparse import auto_cli

    from pgnn_geo import pipeline, stage2
    from pgnn_geo.cli_parser import Parser
    from pgnn_geo.config import (
        CAM_LABELS,
        DataConfig,
        LabelConfig,
        ModelConfig,
        ModelName,
        RunConfig,
        SegmentationNetworkConfig,
        SegmentationTrainingConfigChanges,
        SegmentConfig,
        recipe_with,
    )
    from pgnn_geo.files import write_json
    from pgnn_geo.labels.export import write_coco, write_voc_submission
    from pgnn_geo.labels.inference import MapConfig
    from pgnn_geo.masks import load_mask
    from pgnn_geo.precision import Precision
    from pgnn_geo.predict import PredictConfig, RefinementName, predict_folder
    from pgnn_geo.segmenter import Segmenter
    from pgnn_geo.training.attention import COMPLETION, AttentionTrainingConfig
    from pgnn_geo.training.segmentation import RecipeName
except ModuleNotFoundError as error:
    raise SystemExit(
        f"pgnn-geo needs the package {error.name!r}: pip install 'pgnn-geo[train]'"
    ) from None

DataName = Literal["voc", "folder", "shapes"]
PREDICT, SCALES = PredictConfig(), [1.0]
SEGMENTATION, UNCHANGED = SegmentationNetworkConfig(), SegmentationTrainingConfigChanges()
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
        epochs: Epochs on tags, and as many toward completed maps; the baseline has both on tags.
        seed: Seed of training.
    """
    # Thresholds chosen on these very drawings: a small network without pretrained weights makes
    # blunter features than those that the default values are meant for.
    config = RunConfig(
        data=DataConfig(data="shapes", root=str(Path(out) / "shapes")),
        network=ModelConfig(backbone="vgg_tiny", weights=None, freeze_stages=0, output_stride=8),
        train=AttentionTrainingConfig(
            epochs=epochs,
            completion_epochs=epochs,
            completion=replace(COMPLETION, size=192, propagate="prototypes"),
            foreground=0.7,
            background=0.4,
            size=192,
            lr=1e-3,
            seed=seed,
        ),
        maps=MapConfig(size=192, propagate="none", output_stride=8),
        labels=LabelConfig(background=0.3),
        cam_labels=LabelConfig(background=0.2),
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
    cam_labels: LabelConfig = CAM_LABELS,
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
        labels: How label images are made from the P-GNN's maps.
        cam_labels: How they are made from the baseline's.
    """
    source = DataConfig(data, root, split, classes, tags, masks)
    pipeline.run(RunConfig(source, network, train, maps, labels, cam_labels), Path(out))


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


def segment(
    labels: str,
    root: str,
    data: DataName = "voc",
    split: str = "train",
    classes: str | None = None,
    tags: str = "auto",
    masks: str | None = None,
    eval_split: str | None = "val",
    out: str = "runs/segment",
    recipe: RecipeName = "short",
    mutual: Literal["off", "literal", "tags"] = "off",
    mutual_start: int = 1,
    mutual_confidence: float | None = None,
    network: SegmentationNetworkConfig = SEGMENTATION,
    train: SegmentationTrainingConfigChanges = UNCHANGED,
) -> None:
    """Train DeepLab-v2 on label images, measure it, and write it to OUT/segmenter. Resumes.

    Args:
        labels: Folder of label images ID.png, as "label" writes them; or the word "truth", to
            train on the true masks.
        root: Folder of the data set.
        data: "voc", "folder" or "shapes".
        split: Split of VOC to train on.
        classes: Comma-separated class names; the label images use 1..K in this order.
        tags: Source of the tags, see "run".
        masks: For a folder: folder of true masks ID.png.
        eval_split: Split to measure on, if it has masks; null for none.
        out: Folder of the training.
        recipe: "short" (hundreds of photos, a CPU) or "deeplab" (that of the paper, a GPU).
        mutual: Rewriting of the labels after each epoch: "off", "literal", or "tags" to let in
            only classes that a photo is tagged with.
        mutual_start: First epoch after which labels are rewritten.
        mutual_confidence: Probability from which on a prediction rewrites a label.
        network: The network.
        train: Values that take the place of the recipe's; null leaves the recipe's.
    """
    source = DataConfig(data, root, split, classes, tags, masks)
    config = SegmentConfig(
        source,
        labels,
        eval_split,
        network,
        recipe_with(recipe, train),
        mutual,
        mutual_start,
        mutual_confidence,
    )
    stage2.segment(config, Path(out))


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


def predict(
    photos: list[str],
    checkpoint: str,
    out: str = "runs/predict",
    scales: list[float] = SCALES,
    flip: bool = True,
    max_side: int = PREDICT.max_side,
    refine: RefinementName = "none",
    tags: str | None = None,
    overlays: bool = False,
    probabilities: bool = False,
    submission: bool = False,
    coco: str | None = None,
    precision: Precision = "auto",
    device: str = "auto",
) -> None:
    """Write masks OUT/masks/ID.png of new photos (VOC palette, each photo's own size). Resumes.

    Args:
        photos: JPEG or PNG files and folders of them; ID is the path below the folder they share.
        checkpoint: Folder of a segmenter that "segment" wrote, or its id on the Hub.
        out: Folder of the results.
        scales: Multiples of the size at which the segmenter sees photos; they are averaged.
        flip: Average with the mirrored photo.
        max_side: Longer side to which larger photos are scaled down first; bounds the memory.
        refine: "par" or "crf" to fit the masks to the edges in the photo, or "none".
        tags: CSV with the columns image,labels of what is in each photo; the rest is left out.
        overlays: Also write OUT/overlays/ID.png, the photo with its mask painted over.
        probabilities: Also write OUT/probabilities/ID.npz, float16.
        submission: Also write OUT/results/ as the VOC evaluation server wants it.
        coco: JSON file for the masks in COCO's format, if wanted.
        precision: Of the network: "auto", "32-true", "bf16-mixed" or "16-mixed".
        device: "auto", "cpu", "cuda", ...
    """
    config = PredictConfig(tuple(scales), flip, max_side, refine, precision)
    segmenter = Segmenter.from_pretrained(checkpoint)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        segmenter.network.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise InputError(f"--device {device} cannot be used: {error}") from error
    if submission:  # with other classes it fails here
        write_voc_submission(out, (), segmenter.classes)
    done = predict_folder(
        segmenter, photos, out, config, overlays, probabilities, tags, pipeline.progress
    )
    files = [(photo, Path(out) / "masks" / f"{photo.photo_id}.png") for photo in done.photos]
    if submission:
        masks = ((photo.photo_id, load_mask(path)) for photo, path in files)
        write_voc_submission(out, masks, segmenter.classes)
    if coco is not None:
        named = ((f"{p.photo_id}{p.path.suffix}", load_mask(path)) for p, path in files)
        write_coco(coco, named, segmenter.classes, suffix="")
    pipeline.console.print(f"masks: {Path(out) / 'masks'}, {len(files)} photos, {done.new} new")
    _exit_with(done.problems)


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
    if not problems:
        pipeline.console.print("no problem found")
    _exit_with(problems)


def _exit_with(problems: list[str]) -> None:
    """List problems and end with status 1, if there are any."""
    for problem in problems:
        pipeline.console.print(f"problem: {problem}", highlight=False, markup=False, soft_wrap=True)
    if problems:
        pipeline.console.print(f"{len(problems)} problem(s)")
        sys.exit(1)


def main(args: list[str] | None = None) -> None:
    """Entry point of the ``pgnn-geo`` command; an error for people ends it with status 2."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # which set INFO when imported
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        commands: list[Any] = [demo, run, train, label, segment, predict, evaluate, doctor]
        auto_cli(commands, args=args, prog="pgnn-geo", as_positional=False, parser_class=Parser)
    except InputError as error:
        print(f"pgnn-geo: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
