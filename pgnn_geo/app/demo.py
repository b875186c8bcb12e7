"""The run of ``pgnn-geo demo``, on the embedded data set."""

from dataclasses import replace
from pathlib import Path

from pgnn_geo.app.config import (
    LabelConfig,
    ModelConfig,
    RunConfig,
    SegmentationNetworkConfig,
    Stage2Config,
)
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.labels.maps import MapConfig
from pgnn_geo.training.attention import COMPLETION, AttentionTrainingConfig
from pgnn_geo.training.segmentation_config import RECIPES


def demo_config(out: Path, epochs: int = 6, seed: int = 0) -> RunConfig:
    """Return the settings of the demo: a small network trained from random weights.

    Args:
        out (Path): Folder of the run; the data set is made in its folder :obj:`shapes`.
        epochs (int): Epochs on tags, and as many toward completed maps; the baseline has both on
            tags. Stage 2 has five times as many. (default: :obj:`6`)
        seed (int): Seed of training. (default: :obj:`0`)
    """
    # Chosen on these very drawings: a small network without pretrained weights makes blunter
    # features than those that the default values are meant for, and collinear ones.
    return RunConfig(
        data=DataConfig(data="shapes", root=str(out / "shapes")),
        flow="trained",
        baseline=True,
        network=ModelConfig(backbone="vgg_tiny", weights=None, freeze_stages=0, output_stride=8),
        train=AttentionTrainingConfig(
            epochs=epochs,
            completion_epochs=epochs,
            completion=replace(COMPLETION, propagation_whitening=0.1),
            background=0.2,
            size=192,
            lr=1e-3,
            seed=seed,
        ),
        maps=MapConfig(output_stride=8, propagation_whitening=0.1),
        labels=LabelConfig(background=0.1),
        cam_labels=LabelConfig(background=0.2),
        segment=Stage2Config(
            uncertain=None,
            network=SegmentationNetworkConfig("vgg_tiny", weights=None, hidden_channels=256),
            train=RECIPES["short"].changed(
                freeze_stages=0,
                augment="crop",
                scale=(0.8, 1.2),
                train_stride=None,
                epochs=5 * epochs,
                batch_size=4,
                size=128,
                crop=128,
                lr=3e-3,
                head_factor=1.0,
                seed=seed,
                workers=0,
            ),
        ),
    )
