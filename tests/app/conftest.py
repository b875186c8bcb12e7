"""Small runs, for the tests of their reports."""

from pathlib import Path

import pytest

from pgnn_geo.app.cli import main

RUN = (
    *("--recipe=trained", "--baseline=true", "--patches=grid", "--labels.refine=none"),
    *("--network.backbone=vgg_tiny", "--network.weights=null", "--network.freeze_stages=0"),
    *("--network.output_stride=8", "--network.heads=2"),
    *("--train.size=64", "--train.epochs=1", "--train.completion_epochs=1", "--train.workers=0"),
    *("--maps.size=64", "--maps.partners=1", "--maps.output_stride=8"),
    *("--segment_network.backbone=vgg_tiny", "--segment_network.weights=null"),
    *("--segment_network.hidden_channels=32", "--segment_train.freeze_stages=1"),
    *("--segment_train.size=64", "--segment_train.crop=64", "--segment_train.epochs=2"),
    "--segment_train.workers=0",
)

FROZEN = (
    *("--recipe=best", "--segment=off", "--network.backbone=vgg_tiny", "--labels.refine=none"),
    *("--features.size=64", "--evidence.positions=1000", "--evidence.iterations=5"),
    "--evidence.classifier_rounds=1",
)


@pytest.fixture(scope="session")
def frozen(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the default flow, without the baseline."""
    out = tmp_path_factory.mktemp("frozen") / "run"
    main(["run", f"--root={shapes_root}", f"--out={out}", *FROZEN])
    return out


@pytest.fixture(scope="session")
def reported(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with both models, a graph of patches, and stage 2."""
    out = tmp_path_factory.mktemp("reported") / "run"
    main(["run", f"--root={shapes_root}", f"--out={out}", *RUN])
    return out
