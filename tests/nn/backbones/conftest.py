from collections.abc import Callable
from functools import cache

import pytest
import torch

from pgnn_geo.nn import Backbone, build_backbone


@pytest.fixture(scope="session")
def built() -> Callable[[str], Backbone]:
    """Backbones with random weights, by name; they are built once, and no test changes them."""

    @cache
    def build(name: str) -> Backbone:
        torch.manual_seed(0)
        return build_backbone(name, weights=None, output_stride=None).eval()

    return build
