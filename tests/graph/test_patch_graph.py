import pytest
import torch
import torch_geometric.transforms as T
from torch.utils.data.datapipes.iter import IterableWrapper
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from pgnn_geo.errors import InputError
from pgnn_geo.graph import GroupData, PatchGraph, PatchGraphBuilder, stitch

FEATURES = torch.randn(3, 4, 9, 8)


def assert_same_nodes(data, batch):
    for key in ("x", "pos", "node_class", "image_batch", "edge_index"):
        assert torch.equal(data[key], batch[key]), key
    assert [data.geometry] == batch.geometry


def test_repr():
    assert repr(PatchGraph(grid=4)) == "PatchGraph(grid=4, background=False)"
    assert repr(PatchGraph(box_size=2, background=True)) == (
        "PatchGraph(box_size=2, background=True)"
    )


def test_same_graph_as_the_builder():
    data = Data(x=FEATURES, y=torch.tensor([1]), tags=torch.rand(3, 5), name="a")
    out = PatchGraph(grid=2, background=True)(data)
    assert type(out) is GroupData and out.validate()
    assert_same_nodes(out, PatchGraphBuilder(grid=2, background=True)(FEATURES, edges=True))
    assert out.y is data.y and out.tags is data.tags and out.name == "a"
    assert data.x is FEATURES and set(data.keys()) == {"x", "y", "tags", "name"}
    assert torch.equal(stitch(out), FEATURES)


def test_classes_of_cells():
    data = Data(x=FEATURES, node_class=torch.arange(12))
    assert PatchGraph(grid=2)(data).node_class.tolist() == list(range(12))


def test_boxes():
    boxes = [
        torch.tensor([[0.0, 1.0, 4.0, 5.0]]),
        torch.zeros(0, 4),
        torch.tensor([[1.0, 1, 2, 3]]),
    ]
    box_class = [torch.tensor([2]), torch.tensor([]), torch.tensor([1])]
    out = PatchGraph(box_size=2)(Data(x=FEATURES, boxes=boxes, box_class=box_class))
    builder = PatchGraphBuilder(box_size=2)
    assert_same_nodes(out, builder(FEATURES, boxes=boxes, box_class=box_class, edges=True))
    assert "boxes" not in out and "box_class" not in out


def test_composes_with_transforms_of_pyg():
    transform = T.Compose([PatchGraph(grid=2), T.RemoveSelfLoops(), T.Cartesian(norm=False)])
    out = transform(Data(x=FEATURES))
    source, target = out.edge_index
    assert out.num_edges == 12 * 11
    assert torch.equal(out.edge_attr, out.pos[source] - out.pos[target])
    assert out.num_features == 4


def test_without_edges():
    assert "edge_index" not in PatchGraph(grid=2, edges=False)(Data(x=FEATURES))


def test_loader_makes_the_batch_of_the_builder():
    pieces = [PatchGraph(grid=2)(Data(x=part)) for part in (FEATURES, -FEATURES)]
    (batch,) = DataLoader(pieces, batch_size=2)
    features = torch.cat([FEATURES, -FEATURES])
    expected = PatchGraphBuilder(grid=2)(features, images_per_group=3, edges=True)
    for key in ("x", "edge_index", "batch", "ptr", "image_batch"):
        assert torch.equal(batch[key], expected[key]), key
    assert torch.equal(stitch(batch), features)


def test_functional_name():
    (out,) = IterableWrapper([Data(x=FEATURES)]).patch_graph(grid=2)
    assert torch.equal(out.x, PatchGraph(grid=2)(Data(x=FEATURES)).x)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(), "`features`: expected .* got None"),
        (Data(x=FEATURES, boxes=[]), "`boxes`: expected None because `grid` is set"),
        (Data(x=FEATURES, edge_index=torch.zeros(2, 1).long()), r"also \['edge_index'\]"),
        (Data(x=FEATURES, num_nodes=3, pos=torch.rand(3, 2)), r"also \['num_nodes', 'pos'\]"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(InputError, match=message):
        PatchGraph(grid=2)(data)


def test_bad_constructor():
    with pytest.raises(InputError, match="expected one of `grid` and `box_size`"):
        PatchGraph()
