import numpy as np
import pytest
import torch

from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.nn.decoder import activate

TAGS = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 0]], dtype=torch.bool)


@pytest.fixture
def start():
    torch.manual_seed(1)
    owners, classes = TAGS.nonzero(as_tuple=True)
    maps = torch.rand(len(owners), 4, 4)
    return TaggedMaps(maps, owners, classes, TAGS).with_maps(maps)


def test_rows_and_dense_maps_agree(start):
    dense = start.dense(torch.tensor([1, 2]))
    assert torch.equal(dense[0], start.maps[1:3])
    assert torch.equal(dense[1, 1], start.maps[3]) and not dense[1, 0].any()


def test_row_of_any_photos_in_any_order():
    tags = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
    rows = TaggedMaps.empty(tags, 2)
    assert rows.maps.shape == (7, 2, 2) and rows.owners.tolist() == [0, 0, 2, 2, 3, 3, 3]
    expected = torch.tensor([[4, 5, 6], [-1, -1, -1], [0, -1, 1], [-1, 2, 3]])
    assert torch.equal(rows.row(torch.tensor([3, 1, 0, 2])), expected)


def test_what_is_put_is_read_and_nothing_else(start):
    photos = torch.tensor([1, 3])
    rows = start.maps.clone()
    start.put(rows, photos, torch.full((2, 2, 4, 4), 7.0))
    assert (rows[[1, 2, 4]] == 7).all() and torch.equal(rows[[0, 3]], start.maps[[0, 3]])


@pytest.mark.parametrize("window", [1, 3, 9])
def test_averages_are_of_positions_within_the_photo(start, window):
    maps, reach = start.maps.numpy(), window // 2
    expected = np.empty_like(maps)
    for row, y, x in np.ndindex(*maps.shape):
        around = [slice(max(0, centre - reach), centre + reach + 1) for centre in (y, x)]
        expected[row, y, x] = maps[row][*around].mean()
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(start.averaged(window).maps.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "softmax"])
@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_activated_rows_are_activated_dense_scores(start, activation, scale):
    torch.manual_seed(2)
    scores = (scale * torch.randn(4, 2, 4, 4)).double()
    rows = start.activated(scores[TAGS], activation).maps
    dense = activate(scores, activation, TAGS.float())[TAGS]
    expected = dense / dense.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-10)
