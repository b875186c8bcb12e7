"""The commands on boxes, apart from the others because they need the extra ``detect``."""

from pathlib import Path
from typing import Any

from pgnn_geo.boxes import detection
from pgnn_geo.boxes.detection import (
    AdjusterConfig,
    AdjusterNetworkConfig,
    DetectConfig,
    DetectorNetworkConfig,
)
from pgnn_geo.boxes.inference import DetectionConfig
from pgnn_geo.boxes.proposals import ProposalConfig
from pgnn_geo.boxes.training.adjuster import AdjusterTrainingConfig
from pgnn_geo.boxes.training.detector import DetectorTrainingConfig
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.io.run_folder import console

NETWORK, PROPOSALS, TRAINING, BOXES = (
    DetectorNetworkConfig(),
    ProposalConfig(),
    DetectorTrainingConfig(),
    DetectionConfig(),
)
ADJUSTER_NETWORK, ADJUSTER_TRAINING = AdjusterNetworkConfig(), AdjusterTrainingConfig()


def detect(
    root: str,
    out: str = "runs/detect",
    network: DetectorNetworkConfig = NETWORK,
    proposals: ProposalConfig = PROPOSALS,
    train: DetectorTrainingConfig = TRAINING,
    boxes: DetectionConfig = BOXES,
    adjuster: str | None = None,
    eval_split: str | None = None,
    cache: str | None = None,
    **source: Any,
) -> None:
    """Train a detector on image tags and write the boxes of the photos to OUT/boxes.json. Resumes.

    Args:
        root: Folder of the data set.
        out: Folder of the boxes (COCO results), the detector and the figures.
        network: The network.
        proposals: How boxes are proposed, by selective search.
        train: Hyper-parameters of training.
        boxes: How boxes are inferred.
        adjuster: An adjuster.pt that "adjuster" wrote, which moves the boxes; what is made with it
            is not made from tags alone.
        eval_split: Split of VOC to detect in as well, without using its tags; null for none.
        cache: Folder of the proposals, which several runs may share; OUT/proposals by default.
        **source: Which photos, tags and classes.
    """
    photos = DataConfig(root=root, **source)
    config = DetectConfig(photos, network, proposals, train, boxes, adjuster, eval_split)
    detection.detect(config, Path(out), None if cache is None else Path(cache))


def adjuster(
    annotations: str,
    images: str,
    out: str = "runs/adjuster",
    network: AdjusterNetworkConfig = ADJUSTER_NETWORK,
    train: AdjusterTrainingConfig = ADJUSTER_TRAINING,
) -> None:
    """Train a box adjuster on drawn boxes of other photos, into OUT/adjuster.pt. Resumes.

    Args:
        annotations: COCO file of annotations; the classes in it do not matter.
        images: Folder of its photos.
        out: Folder of the adjuster.
        network: The network.
        train: Hyper-parameters of training.
    """
    path = detection.learn_adjuster(AdjusterConfig(annotations, images, network, train), Path(out))
    console.print(f"adjuster: {path}")
