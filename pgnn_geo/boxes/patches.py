"""The boxes that are a P-GNN's patches: where a run has them from, made once and checked."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pgnn_geo.boxes import detection
from pgnn_geo.boxes.attention_boxes import AttentionBoxConfig, AttentionBoxes
from pgnn_geo.boxes.box_file import BoxFile, box_record, cached_boxes
from pgnn_geo.boxes.config import BoxConfig
from pgnn_geo.boxes.detection import DetectConfig
from pgnn_geo.boxes.image_boxes import BoxSource
from pgnn_geo.boxes.photo_boxes import PhotoBoxes
from pgnn_geo.boxes.proposals import check_selective_search
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.io.files import first_difference
from pgnn_geo.io.model_folder import model_digest
from pgnn_geo.io.run_folder import console, progress, timed
from pgnn_geo.labels.maps import MapConfig, attention_maps
from pgnn_geo.precision import default_device
from pgnn_geo.ranks import ALONE, Ranks


def make_boxes(
    config: BoxConfig,
    dataset: TaggedDataset,
    path: Path,
    cam: Path,
    stems: Path | None,
    maps: MapConfig,
    detector: DetectConfig,
    ranks: Ranks = ALONE,
) -> PhotoBoxes:
    """Return the boxes of a run's photos, made into :obj:`path` unless they are there.

    The maps of the run's CAM are completed as the P-GNN's own are in its training, since those of
    a classifier are too peaked for boxes; a detector is trained beside :obj:`path`, in
    :obj:`detector`; a file is read, and kept as it was.

    Args:
        config (BoxConfig): Which boxes.
        dataset (TaggedDataset): The photos.
        path (Path): Where the boxes are kept, as COCO results with a record of what made them.
        cam (Path): The run's CAM, as :func:`~pgnn_geo.io.checkpoint.save_attention_model` wrote it.
        stems (Path, optional): Where outputs of frozen stages are kept for reuse.
        maps (MapConfig): How the CAM's maps are inferred and completed.
        detector (DetectConfig): How a detector is trained.
        ranks (Ranks): The processes that share the photos. (default: this one alone)

    Raises:
        InputError: If they cannot be made, there is none, or those at :obj:`path` were made from
            something else: a network may have been trained on them.
    """
    made_from: dict[str, Any] = {"source": config.source}
    make: Callable[[], BoxSource]
    if config.source == "attention":
        cut = AttentionBoxConfig()
        made_from |= {"cam": model_digest(cam), "maps": asdict(maps), "boxes": asdict(cut)}

        def make() -> BoxSource:
            model, _, ledger, _ = load_attention_model(cam)
            model.to(default_device())
            found = attention_maps(model, dataset, maps, stems, path.parent, progress, ranks=ranks)
            return AttentionBoxes(found, dataset, ledger, cut)

    elif config.source == "detector":
        made_from["detector"] = asdict(detector)

        def make() -> BoxSource:
            folder = path.parent / "detector"
            detection.detect(detector, folder, ranks=ranks)
            return BoxFile(folder / "boxes.json", dataset)

    else:
        file = Path(str(config.file))
        made_from["sha256"] = _digest(file)

        def make() -> BoxSource:
            return BoxFile(file, dataset, skip_unknown=True)

    made_from = json.loads(json.dumps(made_from))

    def is_there() -> bool:
        record = box_record(path)
        if record is None:
            return False
        if difference := first_difference(record["made_from"], made_from):
            raise InputError(
                f"{path} holds boxes made from something else ({difference}). Choose another --out."
            )
        return True

    if ranks.first(is_there):
        return read_boxes(path, dataset)
    with timed("boxes"):
        cached_boxes(path, make(), dataset, made_from, ranks=ranks)
    boxes = read_boxes(path, dataset)
    console.print(_said(boxes, config), highlight=False)
    return boxes


def read_boxes(path: Path, dataset: TaggedDataset) -> PhotoBoxes:
    """Read the boxes of a data set's photos from a file that may hold those of others as well.

    Raises:
        InputError: If the file cannot be used, or has no box of a class that a photo is tagged
            with.
    """
    boxes = PhotoBoxes(BoxFile(path, dataset, skip_unknown=True), dataset)
    if not boxes.counts.any():
        raise InputError(
            f"boxes '{path}': none is of these photos and a class that they are tagged with; see "
            "BoxFile for the ids of images and categories"
        )
    return boxes


def patch_problems(config: BoxConfig, data: DataConfig) -> list[str]:
    """Return what would stop the making of a run's boxes, one line each; the photos must be well.

    What has to be trained first cannot be looked at.
    """
    try:
        if config.source == "file":
            read_boxes(Path(str(config.file)), data.build())
        elif config.source == "detector":
            check_selective_search()
    except InputError as error:
        return [str(error)]
    return []


def describe_boxes(boxes: PhotoBoxes, config: BoxConfig) -> dict[str, Any]:
    """Return what :obj:`metrics.json` says of the boxes."""
    return {
        "source": config.source,
        "file": config.file,
        "top_k": config.top_k,
        "boxes_per_photo": round(boxes.counts.float().mean().item(), 2),
        "photos_without": int((boxes.counts == 0).sum()),
    }


def _said(boxes: PhotoBoxes, config: BoxConfig) -> str:
    names = {"attention": "attention maps", "detector": "a detector", "file": str(config.file)}
    said = describe_boxes(boxes, config)
    return (
        f"boxes from {names[config.source]}: {said['boxes_per_photo']:.1f} a photo; "
        f"{said['photos_without']} of {len(boxes)} photos have none"
    )


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error}") from error
