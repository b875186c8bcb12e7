import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.testing import withCUDA
from torch_geometric.utils import contains_self_loops, is_undirected

from pgnn_geo.errors import InputError
from pgnn_geo.graph import complete_edge_index


def pointers(sizes):
    return torch.tensor([0, *itertools.accumulate(sizes)])


def brute_force(sizes, loop=True):
    """Every (source, target) of one group, by target and then by source."""
    ptr = pointers(sizes).tolist()
    return [
        (source, target)
        for start, end in itertools.pairwise(ptr)
        for target in range(start, end)
        for source in range(start, end)
        if loop or source != target
    ]


@given(st.lists(st.integers(0, 6), max_size=6), st.booleans())
@settings(deadline=None, max_examples=25)
def test_edges_are_all_pairs_within_groups(sizes, loop):
    edge_index = complete_edge_index(pointers(sizes), loop=loop)
    assert edge_index.dtype == torch.long and edge_index.is_contiguous()
    assert list(zip(*edge_index.tolist(), strict=True)) == brute_force(sizes, loop)


@given(st.integers(0, 5), st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_equal_groups_match_brute_force(groups, n):
    edge_index = complete_edge_index(pointers([n] * groups))
    assert list(zip(*edge_index.tolist(), strict=True)) == brute_force([n] * groups)


@pytest.mark.parametrize("sizes", [[3, 3, 3], [4, 0, 1, 2], []])
@pytest.mark.parametrize("loop", [True, False])
def test_edge_index_knows_its_order_and_size(sizes, loop):
    edge_index = complete_edge_index(pointers(sizes), loop=loop, as_edge_index=True)
    assert isinstance(edge_index, EdgeIndex)
    assert edge_index.validate().is_sorted_by_col and edge_index.is_undirected
    assert edge_index.sparse_size() == (sum(sizes), sum(sizes))
    plain = edge_index.as_tensor()
    assert contains_self_loops(plain) == (loop and sum(sizes) > 0)
    assert is_undirected(plain, num_nodes=sum(sizes))


@pytest.mark.parametrize("sizes", [[3, 3], [4, 0, 1], []])
def test_pointers_as_a_list(sizes):
    ptr = pointers(sizes)
    assert torch.equal(complete_edge_index(ptr.tolist()), complete_edge_index(ptr))


def test_output_is_fresh():
    ptr = pointers([2, 2])
    complete_edge_index(ptr).zero_()
    assert complete_edge_index(ptr).max() == 3


@pytest.mark.parametrize(
    "ptr",
    [
        (0, 2),
        [],
        [0, 3, 2],
        torch.tensor([0.0, 2.0]),
        torch.tensor([[0, 2]]),
        torch.tensor([], dtype=torch.long),
        torch.tensor([1, 2]),
        torch.tensor([0, 3, 2]),
    ],
)
def test_bad_pointers(ptr):
    with pytest.raises(InputError, match="`ptr`: expected"):
        complete_edge_index(ptr)


@withCUDA
def test_device(device):
    for sizes in ([3, 3], [1, 4]):
        edge_index = complete_edge_index(pointers(sizes), device=device)
        assert edge_index.device == device
        assert edge_index.tolist() == complete_edge_index(pointers(sizes).to(device)).tolist()
