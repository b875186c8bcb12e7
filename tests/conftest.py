import os
from pathlib import Path

import pytest
import torch

from pgnn_geo.datasets import Shapes


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each: the workers share the cores
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def voc6_root() -> Path:
    default = Path(__file__).parents[2] / "shared" / "data" / "voc6"
    root = Path(os.environ.get("PGNN_VOC6_ROOT", default))
    if not (root / "image_labels.csv").is_file():
        pytest.skip(f"no VOC photographs at '{root}'; set PGNN_VOC6_ROOT")
    return root


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set: open it as `Shapes(shapes_root, split, num_images=(20, 10), size=64)`."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    Shapes(root, "train", num_images=(20, 10), size=64)
    return root
