import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.graph.geometry import patch_class


def test_patch_class_by_hand():
    maps = torch.zeros(2, 3, 4, 4)
    maps[0, 0, :2, :2] = 1.0
    maps[0, 2, 2:, 2:] = 0.9
    maps[0, 1, 2:, 2:] = 0.8
    maps[0, 1, 0, 2] = 1.0  # a quarter of its patch
    maps[1, 1] = 0.5
    assert patch_class(maps, 2).tolist() == [1, 0, 0, 3, 2, 2, 2, 2]
    assert patch_class(maps, 2, threshold=0.2).tolist()[:4] == [1, 2, 0, 3]
    assert patch_class(maps, 1).tolist() == [0, 2] and patch_class(maps, 1).dtype == torch.long


@pytest.mark.parametrize("wrong", [{"grid": 0}, {"grid": 2, "threshold": -0.1}])
def test_patch_class_refuses(wrong):
    with pytest.raises(InputError, match="want 1 or more, and 0 or more"):
        patch_class(torch.zeros(1, 1, 4, 4), **wrong)
