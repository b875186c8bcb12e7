"""The run of ``pgnn-geo demo``, on the embedded data set."""

from pathlib import Path

from pgnn_geo.app.config import LabelConfig, RunConfig, Stage2Config
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.features import FrozenFeatureConfig
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.training.segmentation_config import RECIPES

#: Of a small network whose weights know textures alone: collinear features, and evidence that is
#: as small as the striking part. Chosen on other drawings than those of the demo.
EVIDENCE = EvidenceConfig(
    whitening=0.1,
    evidence_penalty=1e-3,
    evidence_window=5,
    threshold=0.4,
    prototype_rounds=1,
    classifier_rounds=0,
)


def demo_config(out: Path, epochs: int = 25, seed: int = 0) -> RunConfig:
    """Return the settings of the demo: the frozen flow on weights that the package brings.

    Args:
        out (Path): Folder of the run; the data set is made in its folder :obj:`shapes`.
        epochs (int): Epochs of stage 2. (default: :obj:`25`)
        seed (int): Seed of stage 2; nothing else is drawn. (default: :obj:`0`)
    """
    return RunConfig(
        data=DataConfig(data="shapes", root=str(out / "shapes")),
        baseline=True,
        network={"backbone": "vgg_tiny", "weights": "TEXTURES"},
        # In float32 on every processor: the same labels everywhere.
        features=FrozenFeatureConfig(size=192, stride=8, output_stride=8, precision="32-true"),
        evidence=EVIDENCE,
        labels=LabelConfig(background=0.15, refine="par", refine_scale=1.0),
        cam_labels=LabelConfig(background=0.15),
        segment=Stage2Config(
            uncertain=None,
            network={"backbone": "vgg_tiny", "weights": "TEXTURES", "hidden_channels": 256},
            train=RECIPES["short"].changed(
                normalize=False,
                propagation=None,  # it is for features of photographs
                freeze_stages=0,
                augment="crop",
                scale=(0.8, 1.2),
                train_stride=None,
                epochs=epochs,
                batch_size=4,
                size=128,
                crop=128,
                lr=1e-3,
                head_factor=3.0,
                seed=seed,
                workers=0,
            ),
        ),
    )
