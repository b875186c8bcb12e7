"""The command line, ``pgnn-geo COMMAND``: each command is a function.

Options that are fields of a configuration class have their types, default values and texts there,
see :mod:`pgnn_geo.options`.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from pgnn_geo.errors import InputError

# Notes to developers of the libraries, and on EXIF data, of which only the orientation is read.
warnings.filterwarnings("ignore", message=".*module.s. in eval mode.*")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")

try:
    from pgnn_geo.app import pipeline, stage2
    from pgnn_geo.app.cli_export import export, export_dataset, export_photos, unpack, unpacked
    from pgnn_geo.app.cli_measure import doctor, evaluate, exit_with, report
    from pgnn_geo.app.cli_parser import option_names, run_command
    from pgnn_geo.app.config import (
        NETWORK,
        SEGMENTATION_NETWORK,
        LabelConfig,
        RunConfig,
        Stage2Config,
    )
    from pgnn_geo.app.demo import demo_config
    from pgnn_geo.app.labelling import label as label_photos
    from pgnn_geo.app.launch import check_alone, errors_as_lines
    from pgnn_geo.app.memory import keep_freed_memory
    from pgnn_geo.app.recipes import recipe_defaults, recipe_file
    from pgnn_geo.boxes.cli import adjuster, detect
    from pgnn_geo.boxes.config import BoxConfig
    from pgnn_geo.datasets.config import DataConfig, PhotoOptions
    from pgnn_geo.inference.predict import PredictConfig, predict_folder
    from pgnn_geo.inference.segmenter import Segmenter
    from pgnn_geo.io.export import write_coco, write_voc_submission
    from pgnn_geo.io.exports import check_exports
    from pgnn_geo.io.masks import load_mask
    from pgnn_geo.io.run_folder import claim_folder, console, join, notes_as_lines, progress
    from pgnn_geo.labels.evidence import StepName
    from pgnn_geo.labels.maps import MapConfig
    from pgnn_geo.options import Changes, Fields
    from pgnn_geo.training.preflight import find_problems, raise_problems
    from pgnn_geo.training.segmentation_config import (
        RECIPES,
        RecipeName,
        SegmentationTrainingConfig,
    )
except ModuleNotFoundError as error:
    raise SystemExit(
        f"pgnn-geo needs the package {error.name!r}: pip install 'pgnn-geo[train]'"
    ) from None

_STAGE2 = Fields(Stage2Config, skip=("network", "train", "true_masks", "drawn"))
_TRAIN_CHANGES = Annotated[
    dict[str, Any],
    Changes(SegmentationTrainingConfig, "Values that take the place of the recipe's"),
]
_MODEL_MAPS = "How a trained network's attention maps are inferred, if not as its run does"
_MODEL_LABELS = "How label images are made from the maps, if not as the model's run does"
_BOXES = BoxConfig()


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
    photos: PhotoOptions,
    stage1: Annotated[dict[str, Any], Fields(RunConfig, skip=("data", "patches", "segment"))],
    stage2: Annotated[dict[str, Any], _STAGE2],
    segment_network: Annotated[dict[str, Any], SEGMENTATION_NETWORK],
    segment_train: _TRAIN_CHANGES,
    out: str = "runs/run",
    recipe: str = "best",
    cache: str | None = None,
    patches: Literal["none", "grid", "boxes"] = "none",
    boxes: BoxConfig = _BOXES,
    segment: Literal["off", "short", "deeplab", "light"] = "short",
    export: str | None = None,
) -> None:
    """Do the whole job: label the photos, train DeepLab-v2 on the labels, measure. Resumes.

    Args:
        root: Folder of the data set.
        photos: Which photos, tags and classes.
        stage1: How labels are made, see :class:`~pgnn_geo.app.config.RunConfig`.
        stage2: What the network learns, see :class:`~pgnn_geo.app.config.Stage2Config`.
        segment_network: Arguments of the network of stage 2, DeepLab-v2 or one of torchvision's.
        segment_train: Values that take the place of those of the recipe of stage 2.
        out: Folder of the run.
        recipe: Where the values of all other options come from that are not given: "best", what
            measures best on six classes; "many", on twenty; "paper", the paper as it stands;
            "cam", the baseline; or a YAML file.
        cache: Folder where features are kept for other runs; without it they are not kept.
        patches: Nodes of a trained P-GNN's graph: "grid" cells, or "boxes" and what they leave;
            "none": there is no graph, and the maps are completed by propagation alone.
        boxes: Which boxes, with --patches boxes: a detector is trained into OUT/detector.
        segment: Recipe of stage 2, which trains a network on the labels: "short" (hundreds of
            photos, a CPU), "deeplab" (that of the paper, a GPU) or "light" (for a light network
            such as --segment_network.architecture lraspp_mobilenet_v3_large); "off" ends with the
            labels.
        export: Formats such as "coco,yolo" for the P-GNN's labels in OUT/exports as well.
    """
    exports = check_exports(export)
    if patches != "boxes" and boxes != _BOXES:
        raise InputError("--boxes.source, .file, .top_k and .size want --patches boxes")
    _check_graph(patches, stage1["network"])
    stage2_config = None
    if segment != "off":
        training = RECIPES[segment].changed(**segment_train)
        stage2_config = Stage2Config(network=segment_network, train=training, **stage2)
    ranks = join()
    config = RunConfig(
        data=unpacked(root, Path(out), ranks, **photos),
        segment=stage2_config,
        patches=boxes if patches == "boxes" else patches,
        **stage1,
    )
    pipeline.run(config, Path(out), None if cache is None else Path(cache), ranks)
    if exports and ranks.is_first:
        export_dataset(exports, Path(out), config.data.build(), Path(out) / config.model / "labels")


def _check_graph(patches: str, network: dict[str, Any]) -> None:
    """Refuse settings of the patch graph where there is none."""
    of_graph = ("grid", "layers", "heads", "class_embedding", "normalize")
    idle = [name for name in of_graph if network[name] != NETWORK.defaults[name]]
    if patches == "none" and idle:
        raise InputError(f"--network.{idle[0]} is of the patch graph: want --patches grid or boxes")


def train(
    root: str,
    photos: PhotoOptions,
    settings: Annotated[dict[str, Any], Fields(RunConfig, only=("model", "network", "train"))],
    out: str = "runs/train",
    patches: Literal["none", "grid"] = "none",
) -> None:
    """Train one attention model on image tags and write it to OUT/model. Resumes.

    Args:
        root: Folder of the data set.
        photos: Which photos, tags and classes.
        settings: What is trained and how, see :class:`~pgnn_geo.app.config.RunConfig`.
        out: Folder for the model, its checkpoints and TensorBoard's log.
        patches: Nodes of the P-GNN's graph, see "run".
    """
    _check_graph(patches, settings["network"])
    data = DataConfig(root=root, **photos)
    config = RunConfig(data, "trained", segment=None, patches=patches, **settings)
    ranks = join()

    def check() -> None:
        claim_folder(Path(out), config)
        raise_problems(find_problems(config.data, config.source))

    ranks.first(check)
    ranks.check_shared(Path(out) / "config.json")
    dataset, stems = config.data.build(), Path(out) / "stems"
    path = pipeline.train(config, config.model, Path(out), dataset, stems, ranks=ranks)
    console.print(f"model: {path}")


def label(
    checkpoint: str,
    root: str,
    photos: PhotoOptions,
    maps: Annotated[dict[str, Any], Changes(MapConfig, _MODEL_MAPS)],
    labels: Annotated[dict[str, Any], Changes(LabelConfig, _MODEL_LABELS)],
    out: str = "runs/labels",
    step: StepName | None = None,
    boxes: str | None = None,
    cache: str | None = None,
    export: str | None = None,
) -> None:
    """Write pseudo-labels OUT/ID.png (VOC palette, the photo's own size) of tagged photos.

    Args:
        checkpoint: What "run" or "train" wrote: a folder such as pgnn/model.
        root: Folder of the data set.
        photos: Which photos, tags and classes.
        maps: Values that take the place of those of the run of a trained network.
        labels: Values that take the place of those of the model's run.
        out: Folder of the label images.
        step: Of a model of the frozen flow: the step whose maps are taken: "evidence", "prototypes"
            or "classifier"; null is the last.
        boxes: COCO results with the photos' boxes, for a P-GNN whose patches they are.
        cache: Folder where features are kept for other runs; without it they are not kept.
        export: Formats such as "coco,yolo" in which they are also written into OUT/exports.
    """
    exports = check_exports(export)
    ranks = join()
    dataset = DataConfig(root=root, **photos).build()
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
    photos: PhotoOptions,
    settings: Annotated[dict[str, Any], Fields(Stage2Config, skip=("train",))],
    train: _TRAIN_CHANGES,
    out: str = "runs/segment",
    recipe: RecipeName = "short",
) -> None:
    """Train a network on label images, measure it, and write it to OUT/segmenter. Resumes.

    Args:
        labels: Folder of label images ID.png, as "label" writes them; or the word "truth", to
            train on the true masks.
        root: Folder of the data set.
        photos: Which photos, tags and classes.
        settings: What is learnt, see :class:`~pgnn_geo.app.config.Stage2Config`.
        train: Values that take the place of the recipe's.
        out: Folder of the training.
        recipe: "short" (hundreds of photos, a CPU), "deeplab" (that of the paper, a GPU), or
            "light" (for torchvision's networks).
    """
    config = Stage2Config(train=RECIPES[recipe].changed(**train), **settings)
    ranks = join()
    stage2.segment(config.on(DataConfig(root=root, **photos), labels), Path(out), ranks)


def predict(
    photos: list[str],
    checkpoint: str,
    settings: Annotated[dict[str, Any], Fields(PredictConfig)],
    out: str = "runs/predict",
    tags: str | None = None,
    overlays: bool = False,
    probabilities: bool = False,
    submission: bool = False,
    coco: str | None = None,
    device: str = "auto",
    max_pixels: int | None = None,
    export: str | None = None,
) -> None:
    """Write masks OUT/masks/ID.png of new photos (VOC palette, each photo's own size). Resumes.

    Args:
        photos: JPEG or PNG files and folders of them; ID is the path below the folder they share.
        checkpoint: Folder of a segmenter that "segment" wrote, its id on the Hub, or the ONNX file
            that "export" made of it.
        settings: How, see :class:`~pgnn_geo.inference.PredictConfig`.
        out: Folder of the results.
        tags: CSV with the columns image,labels of what is in each photo; the rest is left out.
        overlays: Also write OUT/overlays/ID.png, the photo with its mask painted over.
        probabilities: Also write OUT/probabilities/ID.npz, float16.
        submission: Also write OUT/results/ as the VOC evaluation server wants it.
        coco: JSON file for the masks in COCO's format, if wanted.
        device: "auto", "cpu", "cuda", ...
        max_pixels: Largest photo that is read, width times height; 178,956,970 if not given.
        export: Formats such as "coco,yolo" in which masks are also written into OUT/exports.
    """
    exports = check_exports(export)
    config = PredictConfig(**{**settings, "scales": tuple(settings["scales"])})
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
    keep_freed_memory()
    with errors_as_lines(), notes_as_lines():
        commands: list[Any] = [demo, run, train, label, segment, predict, export, unpack]
        given = sys.argv[1:] if args is None else args
        check_alone(given[0] if given else "")
        recipes = {"run": recipe_file(given)} if given[:1] == ["run"] else {}
        shared = {}
        if given[:1] == ["doctor"]:
            shared = {"doctor": recipe_defaults(recipe_file(given), option_names(doctor))}
        commands += [evaluate, report, doctor, detect, adjuster]
        run_command("pgnn-geo", commands, recipes, args, shared)


if __name__ == "__main__":
    main()
