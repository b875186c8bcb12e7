import copy
import pickle

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader
from torch_geometric.testing import onlyCUDA

from pgnn_geo.errors import InputError
from pgnn_geo.graph import SAFE_GLOBALS, GroupData, GroupGeometry, PatchGraphBuilder, stitch

GROUP = torch.tensor([0, 0, 0, 4, 4, 7])


def make_grid(background=False, **kwargs):
    builder = PatchGraphBuilder(grid=2, background=background)
    node_class = torch.randint(0, 5, (6, 2, 2))
    return builder(torch.randn(6, 3, 5, 6), GROUP, node_class=node_class, **kwargs)


def make_boxes(background=False, **kwargs):
    # Image 2, the last of its group, has no box, nor has image 5, a group of its own.
    counts = [2, 1, 0, 0, 3, 0]
    corner = [torch.rand(k, 2) * 4 for k in counts]
    boxes = [torch.cat([c, c + 0.5], dim=1) for c in corner]
    box_class = [torch.randint(1, 5, (k,)) for k in counts]
    builder = PatchGraphBuilder(box_size=2, background=background)
    features = torch.randn(6, 3, 5, 6)
    return builder(features, GROUP, boxes=boxes, box_class=box_class, **kwargs)


CASES = [
    lambda: make_grid(),
    lambda: make_grid(background=True, edges=True),
    lambda: make_grid(edges=True, as_edge_index=True),
    lambda: make_boxes(),
    lambda: make_boxes(background=True, edges=True),
    lambda: make_boxes(edges=True, as_edge_index=True),
]
cases = pytest.mark.parametrize("make", CASES)


def assert_equal(a, b):
    assert type(a) is type(b)
    assert a.keys() == b.keys()
    for key in a.keys():
        if isinstance(a[key], torch.Tensor):
            assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key
        else:
            assert a[key] == b[key], key


@cases
def test_batch_is_what_from_data_list_makes_of_its_pieces(make):
    batch = make()
    again = Batch.from_data_list(batch.to_data_list())
    assert_equal(batch, again)
    assert list(batch._store.keys()) == list(again._store.keys())
    assert batch._slice_dict.keys() == again._slice_dict.keys()
    for made, expected in (
        (batch._slice_dict, again._slice_dict),
        (batch._inc_dict, again._inc_dict),
    ):
        for key, value in expected.items():
            assert made[key] is value is None or torch.equal(made[key], value), key
    assert batch.num_graphs == again.num_graphs == 3
    assert repr(batch) == repr(again)


@cases
def test_pieces(make):
    batch = make()
    pieces = batch.to_data_list()
    assert [p.num_images for p in pieces] == [3, 2, 1]
    assert [p.num_nodes for p in pieces] == batch.ptr.diff().tolist()
    for i, piece in enumerate(pieces):
        assert type(piece) is GroupData
        assert piece.validate()
        assert_equal(piece, batch[i])
        if piece.num_nodes:
            assert piece.image_batch.min() >= 0 and piece.image_batch.max() < piece.num_images
        if "edge_index" in piece:
            n = piece.num_nodes
            assert piece.edge_index.shape == (2, n * n)
            assert n == 0 or (int(piece.edge_index.min()), int(piece.edge_index.max())) == (
                0,
                n - 1,
            )
    for piece, i in zip(batch.index_select(torch.tensor([2, 0])), (2, 0), strict=True):
        assert_equal(piece, pieces[i])
    assert len(batch[1:]) == 2


@cases
def test_loader_batches_the_groups_again(make):
    batch = make()
    (again,) = DataLoader(batch.to_data_list(), batch_size=3)
    assert_equal(again, batch)
    first, second = DataLoader(batch.to_data_list(), batch_size=2)
    torch.testing.assert_close(stitch(first), stitch(batch)[:5])
    torch.testing.assert_close(stitch(second), stitch(batch)[5:])


def test_trailing_image_without_node_is_counted():
    batch = make_boxes()
    # Images 2, 3 and 5 have no node; image 4 must not take the place of image 3.
    assert batch.image_batch.tolist() == [0, 0, 1, 4, 4, 4]
    assert batch[1].image_batch.tolist() == [1, 1, 1]
    assert batch[2].num_nodes == 0 and batch[2].num_images == 1
    assert batch.ptr.tolist() == [0, 3, 6, 6]
    again = Batch.from_data_list([batch[2], batch[0], batch[1]])
    assert again.image_batch.tolist() == [1, 1, 2, 5, 5, 5]
    assert again.batch.tolist() == [1, 1, 1, 2, 2, 2]


def test_batch_of_batches_counts_images_and_groups_without_nodes():
    batch = make_boxes()
    twice = Batch.from_data_list([batch, batch])
    assert twice.image_batch.tolist() == [0, 0, 1, 4, 4, 4, 6, 6, 7, 10, 10, 10]
    assert twice.batch.tolist() == [0, 0, 0, 1, 1, 1, 3, 3, 3, 4, 4, 4]
    assert twice.num_images == 12
    assert torch.equal(stitch(twice), stitch(batch).repeat(2, 1, 1, 1))


def test_edge_index_survives_batching():
    batch = make_boxes(edges=True, as_edge_index=True)
    assert isinstance(batch.edge_index, EdgeIndex) and batch.edge_index.is_sorted_by_col
    piece = batch[1]
    assert isinstance(piece.edge_index, EdgeIndex)
    assert piece.edge_index.validate().is_sorted_by_col
    assert piece.edge_index.sparse_size() == (3, 3)
    again = Batch.from_data_list(batch.to_data_list())
    assert again.edge_index._cat_metadata == batch.edge_index._cat_metadata
    assert again.edge_index.sparse_size() == batch.edge_index.sparse_size()


@cases
def test_copies_and_files(make, tmp_path):
    batch = make()
    for copied in (copy.copy(batch), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert_equal(copied, batch)
        assert_equal(copied[1], batch[1])
    torch.save(batch, tmp_path / "batch.pt")
    assert_equal(torch.load(tmp_path / "batch.pt", weights_only=False)[1], batch[1])
    pieces = batch.to_data_list()
    torch.save(pieces, tmp_path / "pieces.pt")
    with torch.serialization.safe_globals(SAFE_GLOBALS):
        again = torch.load(tmp_path / "pieces.pt", weights_only=True)
    for loaded, piece in zip(again, pieces, strict=True):
        assert_equal(loaded, piece)


def test_import_does_not_widen_what_torch_trusts(tmp_path):
    assert not set(SAFE_GLOBALS) & set(torch.serialization.get_safe_globals())
    torch.save(make_grid()[0], tmp_path / "piece.pt")
    with pytest.raises(pickle.UnpicklingError, match="GroupData"):
        torch.load(tmp_path / "piece.pt", weights_only=True)


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_round_trip_through_a_list(data):
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    flags = {key: data.draw(st.booleans()) for key in ("edges", "as_edge_index")}
    background, channels = data.draw(st.booleans()), data.draw(st.integers(1, 5))
    counts = data.draw(st.lists(st.integers(0, 2), min_size=sum(sizes), max_size=sum(sizes)))
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    features = torch.randn(sum(sizes), channels, 5, 7)
    if data.draw(st.booleans()):
        batch = PatchGraphBuilder(grid=2, background=background)(features, group, **flags)
    else:
        boxes = [torch.tensor([[1.0, 0.5, 4.0, 5.0]]).expand(k, 4) for k in counts]
        builder = PatchGraphBuilder(box_size=3, background=background)
        batch = builder(features, group, boxes=boxes, **flags)
    assume(batch.num_nodes > 1 or not flags["as_edge_index"])  # PyG cannot join such `EdgeIndex`
    again = Batch.from_data_list(batch.to_data_list())
    assert_equal(batch, again)
    assert torch.equal(stitch(batch), stitch(again))
    for one in (batch, again, *batch.to_data_list()):
        assert one.num_features == one.num_node_features == channels
    assert batch.max_num_nodes == again.max_num_nodes


@pytest.mark.parametrize(("shape", "expected"), [((4, 8, 5, 6), 8), ((4, 7), 7), ((4,), 1)])
def test_feature_counts(shape, expected):
    batch = PatchGraphBuilder(grid=2)(torch.randn(1, 8, 10, 12))
    batch.x = torch.randn(shape)
    assert batch.num_features == batch.num_node_features == expected


@cases
def test_largest_group(make):
    batch = make()
    sizes = [data.num_nodes for data in batch.to_data_list()]
    assert batch.max_num_nodes == max(sizes)
    assert [data.max_num_nodes for data in batch.to_data_list()] == sizes
    assert Batch.from_data_list(batch.to_data_list()[::-1]).max_num_nodes == max(sizes)


def test_to_device_keeps_the_geometry():
    batch = make_grid()
    moved = batch.to("meta")
    assert moved.x.is_meta and moved.geometry == make_grid().geometry


def test_geometry_is_no_node_attribute():
    # One node per group: the list of geometries is as long as there are nodes.
    batch = PatchGraphBuilder(grid=1)(torch.randn(2, 3, 4, 4), images_per_group=1)
    assert batch.num_nodes == len(batch.geometry)
    assert not batch.is_node_attr("geometry")
    half = batch.subgraph(torch.tensor([0]))
    assert half.geometry == batch.geometry and half.x.shape[0] == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node_class", torch.zeros(3, dtype=torch.long)),
        ("node_class", torch.full((4,), -1)),
        ("pos", torch.zeros(4, 3)),
        ("image_batch", torch.tensor([0, 0, 0, 1])),
        ("image_batch", torch.tensor([0, 0, 0, -1])),
    ],
)
def test_validate_names_the_field(key, value):
    data = PatchGraphBuilder(grid=2)(torch.randn(1, 3, 4, 4))[0]
    assert data.validate()
    data[key] = value
    assert data.validate(raise_on_error=False) is False
    with pytest.raises(InputError, match=f"`{key}`: expected"):
        data.validate()


def test_validate_asks_for_the_geometry():
    data = PatchGraphBuilder(grid=2)(torch.randn(1, 3, 4, 4))[0]
    del data["geometry"]
    with pytest.raises(InputError, match="`geometry`: missing"):
        data.validate()


def test_shared_geometry_refuses_a_mixture():
    builder = PatchGraphBuilder(grid=2)
    small, large = builder(torch.randn(1, 3, 4, 4)), builder(torch.randn(1, 3, 4, 4))
    assert Batch.from_data_list([small[0], large[0]]).shared_geometry() == GroupGeometry(
        0, 4, 4, 2, False
    )
    other = PatchGraphBuilder(grid=2)(torch.randn(1, 3, 3, 4))
    with pytest.raises(InputError, match="one by one"):
        stitch(Batch.from_data_list([small[0], other[0]]))


@onlyCUDA
def test_pin_memory():
    batch = make_boxes(background=True, edges=True)
    pinned = batch.pin_memory()
    assert pinned.x.is_pinned() and pinned.edge_index.is_pinned()
    assert pinned.to("cuda", non_blocking=True)[1].x.is_cuda
