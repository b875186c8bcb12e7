"""The commands on boxes, apart from the others because they need the extra ``detect``."""

from pathlib import Path
from typing import Annotated, Any

from pgnn_geo.boxes import detection
from pgnn_geo.boxes.detection import AdjusterConfig, DetectConfig
from pgnn_geo.datasets.config import DataConfig, PhotoOptions
from pgnn_geo.io.run_folder import console, join
from pgnn_geo.options import Fields


def detect(
    root: str,
    photos: PhotoOptions,
    settings: Annotated[dict[str, Any], Fields(DetectConfig, skip=("data",))],
    out: str = "runs/detect",
    cache: str | None = None,
) -> None:
    """Train a detector on image tags and write the boxes of the photos to OUT/boxes.json. Resumes.

    Args:
        root: Folder of the data set.
        photos: Which photos, tags and classes.
        settings: How, see :class:`~pgnn_geo.boxes.detection.DetectConfig`.
        out: Folder of the boxes (COCO results), the detector and the figures.
        cache: Folder of the proposals, which several runs may share; OUT/proposals by default.
    """
    config = DetectConfig(DataConfig(root=root, **photos), **settings)
    detection.detect(config, Path(out), None if cache is None else Path(cache), join())


def adjuster(
    settings: Annotated[dict[str, Any], Fields(AdjusterConfig)], out: str = "runs/adjuster"
) -> None:
    """Train a box adjuster on drawn boxes of other photos, into OUT/model. Resumes.

    Args:
        settings: On what and how, see :class:`~pgnn_geo.boxes.detection.AdjusterConfig`.
        out: Folder of the adjuster.
    """
    path = detection.learn_adjuster(AdjusterConfig(**settings), Path(out), join())
    console.print(f"adjuster: {path}")
