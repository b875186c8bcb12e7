"""The command line, ``pgnn-geo COMMAND``: each command is a function.

Its ``**source`` are the options of :class:`~pgnn_geo.datasets.DataConfig`, which the parser
finds by the call that they go into.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

from pgnn_geo.errors import InputError

# Notes to developers of the libraries, and on EXIF data, of which only the orientation is read.
warnings.filterwarnings("ignore", message=".*module.s. in eval mode.*")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")

try:
    from pgnn_geo.app import pipeline, stage2
    from pgnn_geo.app.cli_export import export, export_dataset, export_photos, unpack
    from pgnn_geo.app.cli_measure import doctor, evaluate, exit_with, report
    from pgnn_geo.app.cli_parser import run_command
    from pgnn_geo.app.config import (
        CAM_LABELS,
        FlowName,
        LabelConfig,
        ModelConfig,
        ModelName,
        RunConfig,
        SegmentationNetworkConfig,
        Stage2Config,
    )
    from pgnn_geo.app.config_changes import (
        LabelConfigChanges,
        MapConfigChanges,
        SegmentationTrainingConfigChanges,
        recipe_with,
    )
    from pgnn_geo.app.demo import demo_config
    from pgnn_geo.app.labelling import label as label_photos
    from pgnn_geo.app.launch import check_alone, errors_as_lines, join
    from pgnn_geo.app.recipes import recipe_defaults, recipe_file
    from pgnn_geo.boxes.cli import adjuster, detect
    from pgnn_geo.boxes.config import BoxConfig
    from pgnn_geo.datasets.config import DataConfig
    from pgnn_geo.features import FrozenFeatureConfig
    from pgnn_geo.inference.predict import PredictConfig, predict_folder
    from pgnn_geo.inference.segmenter import Segmenter
    from pgnn_geo.io.export import write_coco, write_voc_submission
    from pgnn_geo.io.exports import check_exports
    from pgnn_geo.io.masks import load_mask
    from pgnn_geo.io.run_folder import claim_folder, console, notes_as_lines, progress
    from pgnn_geo.labels.evidence_config import EvidenceConfig, StepName
    from pgnn_geo.labels.maps import MapConfig
    from pgnn_geo.precision import Precision
    from pgnn_geo.training.attention import AttentionTrainingConfig
    from pgnn_geo.training.preflight import find_problems, raise_problems
    from pgnn_geo.training.segmentation_config import RecipeName
except ModuleNotFoundError as error:
    raise SystemExit(
        f"pgnn-geo needs the package {error.name!r}: pip install 'pgnn-geo[train]'"
    ) from None

MutualName = Literal["off", "literal", "tags"]
PREDICT, SCALES = PredictConfig(), [1.0]
SEGMENTATION, RECIPE = SegmentationNetworkConfig(), SegmentationTrainingConfigChanges()
MODEL_MAPS, MODEL_LABELS = MapConfigChanges(), LabelConfigChanges()
BOXES, FEATURES, EVIDENCE = BoxConfig(), FrozenFeatureConfig(), EvidenceConfig()
NETWORK, TRAINING, MAPS, LABELS = (
    ModelConfig(),
    AttentionTrainingConfig(),
    MapConfig(),
    LabelConfig(),
)


def demo(out: str = "runs/demo", epochs: int = 25, seed: int = 0) -> None:
    """Do the whole job on the embedded data set: no photos, no download, minutes on a CPU.

    Args:
        out: Folder of the run; the data set is made in its folder "shapes".
        epochs: Epochs of stage 2; stage 1 trains no network.
        seed: Seed of stage 2; nothing else is drawn.
    """
    pipeline.run(demo_config(Path(out), epochs, seed), Path(out))


def run(
    root: str,
    out: str = "runs/run",
    recipe: str = "best",
    cache: str | None = None,
    flow: FlowName = "frozen",
    model: ModelName = "pgnn",
    baseline: bool = False,
    network: ModelConfig = NETWORK,
    features: FrozenFeatureConfig = FEATURES,
    evidence: EvidenceConfig = EVIDENCE,
    train: AttentionTrainingConfig = TRAINING,
    maps: MapConfig = MAPS,
    labels: LabelConfig = LABELS,
    cam_labels: LabelConfig = CAM_LABELS,
    patches: Literal["none", "grid", "boxes"] = "none",
    boxes: BoxConfig = BOXES,
    segment: Literal["off", "short", "deeplab", "light"] = "short",
    segment_network: SegmentationNetworkConfig = SEGMENTATION,
    segment_train: SegmentationTrainingConfigChanges = RECIPE,
    eval_split: str | None = "val",
    mutual: MutualName = "off",
    mutual_start: int = 1,
    mutual_confidence: float | None = None,
    uncertain: float | None = 0.5,
    export: str | None = None,
    **source: Any,
) -> None:
    """Do the whole job: label the photos, train DeepLab-v2 on the labels, measure. Resumes.

    Args:
        root: Folder of the data set.
        out: Folder of the run.
        recipe: Where the values of all other options come from that are not given: "best", what
            measures best on six classes; "many", on twenty; "paper", the paper as it stands;
            "cam", the baseline; or a YAML file.
        cache: Folder where features are kept for other runs; without it they are not kept.
        flow: "frozen": fit evidence to a pretrained backbone's features; "trained": train a net.
        model: "pgnn", or "cam" for the baseline alone.
        baseline: Make and measure the baseline as well.
        network: The network; of the frozen flow, its backbone.
        features: How the frozen backbone sees photos.
        evidence: How evidence is fitted to its features and passed on.
        train: Hyper-parameters of training.
        maps: How attention maps are inferred by a trained network.
        labels: How label images are made from the P-GNN's maps.
        cam_labels: How they are made from the baseline's.
        patches: Nodes of a trained P-GNN's graph: "grid" cells, or "boxes" and what they leave;
            "none": there is no graph, and the maps are completed by propagation alone.
        boxes: Which boxes, with --patches boxes: a detector is trained into OUT/detector.
        segment: Recipe of stage 2, which trains a network on the labels: "short" (hundreds of
            photos, a CPU), "deeplab" (that of the paper, a GPU) or "light" (for a light network
            such as --segment_network.architecture lraspp_mobilenet_v3_large); "off" ends with the
            labels.
        segment_network: Its network, DeepLab-v2 or one of torchvision's.
        segment_train: Values that take the place of the recipe's; null leaves the recipe's.
        eval_split: Split to measure stage 2 on, if it has masks; null for none.
        mutual: Rewriting of the labels in stage 2, see "segment".
        mutual_start: First epoch after which labels are rewritten.
        mutual_confidence: Probability from which on a prediction rewrites a label.
        uncertain: Which background stage 2 does not learn, see "segment".
        export: Formats such as "coco,yolo" for the P-GNN's labels in OUT/exports as well.
        **source: Which photos, tags and classes.
    """
    exports = check_exports(export)
    if patches != "boxes" and boxes != BOXES:
        raise InputError("--boxes.source, .file, .top_k and .size want --patches boxes")
    _check_graph(patches, network)
    stage2_config = None
    if segment != "off":
        training = recipe_with(segment, segment_train)
        learnt = mutual, mutual_start, mutual_confidence, uncertain
        stage2_config = Stage2Config(eval_split, segment_network, training, *learnt)
    config = RunConfig(
        data=DataConfig(root=root, **source),
        flow=flow,
        model=model,
        baseline=baseline,
        network=network,
        features=features,
        evidence=evidence,
        train=train,
        maps=maps,
        labels=labels,
        cam_labels=cam_labels,
        segment=stage2_config,
        patches=boxes if patches == "boxes" else patches,
    )
    ranks = join()
    pipeline.run(config, Path(out), None if cache is None else Path(cache), ranks)
    if ranks.is_first:
        export_dataset(exports, Path(out), config.data.build(), Path(out) / config.model / "labels")


def _check_graph(patches: str, network: ModelConfig) -> None:
    """Refuse settings of the patch graph where there is none."""
    of_graph = ("grid", "layers", "heads", "class_embedding")
    idle = [name for name in of_graph if getattr(network, name) != getattr(NETWORK, name)]
    if patches == "none" and idle:
        raise InputError(f"--network.{idle[0]} is of the patch graph: want --patches grid or boxes")


def train(
    root: str,
    model: ModelName = "pgnn",
    out: str = "runs/train",
    network: ModelConfig = NETWORK,
    train: AttentionTrainingConfig = TRAINING,
    patches: Literal["none", "grid"] = "none",
    **source: Any,
) -> None:
    """Train one attention model on image tags and write it to OUT/model.pt. Resumes.

    Args:
        root: Folder of the data set.
        model: "pgnn", or "cam" for the baseline without the graph.
        out: Folder for the model, its checkpoints and TensorBoard's log.
        network: The network.
        train: Hyper-parameters of training.
        patches: Nodes of the P-GNN's graph, see "run".
        **source: Which photos, tags and classes.
    """
    _check_graph(patches, network)
    photos = DataConfig(root=root, **source)
    config = RunConfig(
        photos, "trained", model, network=network, train=train, segment=None, patches=patches
    )
    ranks = join()

    def check() -> None:
        claim_folder(Path(out), config)
        raise_problems(find_problems(config.data, config.network))

    ranks.first(check)
    ranks.check_shared(Path(out) / "config.json")
    dataset = config.data.build()
    path = pipeline.train(config, model, Path(out), dataset, Path(out) / "stems", ranks=ranks)
    console.print(f"model: {path}")


def label(
    checkpoint: str,
    root: str,
    out: str = "runs/labels",
    step: StepName | None = None,
    boxes: str | None = None,
    cache: str | None = None,
    maps: MapConfigChanges = MODEL_MAPS,
    labels: LabelConfigChanges = MODEL_LABELS,
    export: str | None = None,
    **source: Any,
) -> None:
    """Write pseudo-labels OUT/ID.png (VOC palette, the photo's own size) of tagged photos.

    Args:
        checkpoint: What "run" or "train" wrote: a folder pgnn/model, or a file model.pt.
        root: Folder of the data set.
        out: Folder of the label images.
        step: Of a folder: the step whose maps are taken: "evidence", "prototypes" or "classifier";
            null is the last.
        boxes: COCO results with the photos' boxes, for a P-GNN whose patches they are.
        cache: Folder where features are kept for other runs; without it they are not kept.
        maps: How a trained network's attention maps are inferred; null is as its run does.
        labels: How label images are made from the maps; null is as its run does.
        export: Formats such as "coco,yolo" in which they are also written into OUT/exports.
        **source: Which photos, tags and classes.
    """
    exports = check_exports(export)
    ranks = join()
    dataset = DataConfig(root=root, **source).build()
    ranks.first(lambda: raise_problems(dataset.check()))
    given, kept = (None if name is None else Path(name) for name in (boxes, cache))
    options = maps, labels, kept, given, step, ranks
    folder = label_photos(Path(checkpoint), dataset, Path(out), *options)
    console.print(f"labels: {folder}")
    if ranks.is_first:
        export_dataset(exports, Path(out), dataset, folder)


def segment(
    labels: str,
    root: str,
    eval_split: str | None = "val",
    out: str = "runs/segment",
    recipe: RecipeName = "short",
    mutual: MutualName = "off",
    mutual_start: int = 1,
    mutual_confidence: float | None = None,
    uncertain: float | None = 0.5,
    true_masks: float = 0.0,
    network: SegmentationNetworkConfig = SEGMENTATION,
    train: SegmentationTrainingConfigChanges = RECIPE,
    **source: Any,
) -> None:
    """Train a network on label images, measure it, and write it to OUT/segmenter. Resumes.

    Args:
        labels: Folder of label images ID.png, as "label" writes them; or the word "truth", to
            train on the true masks.
        root: Folder of the data set.
        eval_split: Split to measure on, if it has masks; null for none.
        out: Folder of the training.
        recipe: "short" (hundreds of photos, a CPU), "deeplab" (that of the paper, a GPU), or
            "light" (for torchvision's networks).
        mutual: Rewriting of the labels after each epoch: "off", "literal", or "tags" to let in
            only classes that a photo is tagged with.
        mutual_start: First epoch after which labels are rewritten.
        mutual_confidence: Probability from which on a prediction rewrites a label.
        uncertain: Share of the background score above which background of the labels is not learnt,
            by the maps that "run" and "label" leave beside them; null to learn all of it.
        true_masks: Share of the photos that are learnt from their true masks in place of labels.
        network: The network: DeepLab-v2, or with --network.architecture one of torchvision's.
        train: Values that take the place of the recipe's; null leaves the recipe's.
        **source: Which photos, tags and classes.
    """
    learnt = mutual, mutual_start, mutual_confidence, uncertain, true_masks
    config = Stage2Config(eval_split, network, recipe_with(recipe, train), *learnt)
    ranks = join()
    stage2.segment(config.on(DataConfig(root=root, **source), labels), Path(out), ranks)


def predict(
    photos: list[str],
    checkpoint: str,
    out: str = "runs/predict",
    scales: list[float] = SCALES,
    flip: bool = True,
    max_side: int = PREDICT.max_side,
    refine: str = "none",
    tags: str | None = None,
    overlays: bool = False,
    probabilities: bool = False,
    submission: bool = False,
    coco: str | None = None,
    precision: Precision = "auto",
    device: str = "auto",
    max_pixels: int | None = None,
    export: str | None = None,
) -> None:
    """Write masks OUT/masks/ID.png of new photos (VOC palette, each photo's own size). Resumes.

    Args:
        photos: JPEG or PNG files and folders of them; ID is the path below the folder they share.
        checkpoint: Folder of a segmenter that "segment" wrote, its id on the Hub, or the ONNX file
            that "export" made of it.
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
        max_pixels: Largest photo that is read, width times height; 178,956,970 if not given.
        export: Formats such as "coco,yolo" in which masks are also written into OUT/exports.
    """
    exports = check_exports(export)
    config = PredictConfig(tuple(scales), flip, max_side, refine, precision)
    ranks = join()
    segmenter = Segmenter.from_pretrained(checkpoint).to(device)
    if submission and ranks.is_first:  # with other classes it fails here
        write_voc_submission(out, (), segmenter.classes)
    options = config, overlays, probabilities, tags, progress, max_pixels, ranks
    done = predict_folder(segmenter, photos, out, *options)
    if not ranks.is_first:
        return
    files = [(photo, Path(out) / "masks" / f"{photo.photo_id}.png") for photo in done.photos]
    if submission:
        masks = ((photo.photo_id, load_mask(path, max_pixels)) for photo, path in files)
        write_voc_submission(out, masks, segmenter.classes)
    if coco is not None:
        named = ((f"{p.photo_id}{p.path.suffix}", load_mask(m, max_pixels)) for p, m in files)
        write_coco(coco, named, segmenter.classes, suffix="")
    place = Path(out), done.photos, Path(out) / "masks"
    export_photos(exports, *place, segmenter.classes, max_pixels)
    console.print(f"masks: {Path(out) / 'masks'}, {len(files)} photos, {done.new} new")
    exit_with(done.problems)


def main(args: list[str] | None = None) -> None:
    """Entry point of the ``pgnn-geo`` command; an error for people ends it with status 2."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # which set INFO when imported
        logging.getLogger(name).setLevel(logging.WARNING)
    with errors_as_lines(), notes_as_lines():
        commands: list[Any] = [demo, run, train, label, segment, predict, export, unpack]
        given = sys.argv[1:] if args is None else args
        check_alone(given[0] if given else "")
        recipes = {"run": recipe_file(given)} if given[:1] == ["run"] else {}
        shared = {}
        if given[:1] == ["doctor"]:
            shared = {"doctor": recipe_defaults(recipe_file(given), doctor)}
        commands += [evaluate, report, doctor, detect, adjuster]
        run_command("pgnn-geo", commands, recipes, args, shared)


if __name__ == "__main__":
    main()
