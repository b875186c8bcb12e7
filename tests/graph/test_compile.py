"""The graph inside compiled and exported functions: features to nodes and back in one graph."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnn_geo.errors import InputError
from pgnn_geo.graph import PatchGraphBuilder, complete_edge_index, stitch

FEATURES = torch.randn(4, 3, 9, 10, generator=torch.Generator().manual_seed(0))
BOXES = [
    torch.tensor([[0.0, 0.0, 4.0, 5.0], [2.2, 3.0, 7.0, 7.5]]),
    torch.zeros(0, 4),
    torch.tensor([[1.0, 1.0, 9.0, 8.0]]),
    torch.tensor([[0.5, 2.0, 6.0, 8.5]]),
]


class Net(torch.nn.Module):
    """Features to nodes, a map of nodes that depends on the whole graph, and back."""

    def __init__(self, builder, **kwargs):
        super().__init__()
        self.builder, self.kwargs = builder, kwargs

    def forward(self, features, *boxes):
        kwargs = self.kwargs | ({"boxes": list(boxes)} if boxes else {})
        batch = self.builder(features, **kwargs)
        ids = batch.batch * 3 + batch.image_batch + batch.node_class
        x = batch.x * 2 + (ids + batch.max_num_nodes + batch.num_graphs).view(-1, 1, 1, 1)
        if "edge_index" in batch:
            source, target = batch.edge_index
            x = x + torch.zeros_like(x).index_add(0, target, x[source])
        batch.x = x
        return stitch(batch)


NETS = {
    "grid": (Net(PatchGraphBuilder(grid=2)), ()),
    "groups": (Net(PatchGraphBuilder(grid=4, background=True), images_per_group=2), ()),
    "edges": (Net(PatchGraphBuilder(grid=2), images_per_group=2, edges=True), ()),
    "boxes": (Net(PatchGraphBuilder(box_size=3), images_per_group=2), BOXES),
    "background": (
        Net(PatchGraphBuilder(box_size=3, background=True), images_per_group=2, edges=True),
        BOXES,
    ),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def test_builder_needs_no_setting_for_boxes():
    builder = PatchGraphBuilder(box_size=3, background=True)

    def build(features, *boxes):
        return builder(features, boxes=list(boxes), images_per_group=2, edges=True).x + 1

    explained = torch._dynamo.explain(build)(FEATURES, *BOXES)
    assert explained.graph_count == 1 and explained.graph_break_count == 0


@pytest.mark.parametrize(
    ("name", "dynamic"), [*((name, False) for name in NETS), ("groups", True), ("boxes", True)]
)
def test_compiled_is_eager(name, dynamic):
    net, boxes = NETS[name]
    # `fullgraph` raises where the graph would break.
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(FEATURES, *boxes), net(FEATURES, *boxes))
    moved = [box * 0.5 for box in boxes]
    assert torch.equal(compiled(FEATURES, *moved), net(FEATURES, *moved))


@pytest.mark.slow
def test_compiled_by_the_default_backend():
    net = NETS["groups"][0]
    features = [FEATURES.clone().requires_grad_() for _ in range(2)]
    out = [torch.compile(net, fullgraph=True)(features[0]), net(features[1])]
    torch.testing.assert_close(*out)
    for result in out:
        result.square().sum().backward()
    torch.testing.assert_close(features[0].grad, features[1].grad)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.booleans())
@settings(deadline=None, max_examples=5)
def test_compiled_round_trip(h, w, grid, background):
    builder = PatchGraphBuilder(grid=grid, background=background)
    features = torch.randn(2, 3, h, w)
    torch._dynamo.reset()
    compiled = torch.compile(lambda f: stitch(builder(f)), fullgraph=True, backend="eager")
    assert torch.equal(compiled(features), features)


def test_batch_leaves_a_compiled_function_whole():
    builder = PatchGraphBuilder(grid=2, background=True)

    def build(features):
        return builder(features, images_per_group=2, edges=True)

    batch, expected = (
        torch.compile(build, fullgraph=True, backend="eager")(FEATURES),
        build(FEATURES),
    )
    assert type(batch) is type(expected) and repr(batch) == repr(expected)
    for piece, wanted in zip(batch.to_data_list(), expected.to_data_list(), strict=True):
        assert piece.geometry == wanted.geometry
        for key in ("x", "edge_index", "pos", "node_class", "image_batch"):
            assert torch.equal(piece[key], wanted[key]), key


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("strict", [False, True])
def test_exported_is_eager(name, strict):
    net, boxes = NETS[name]
    program = torch.export.export(net, (FEATURES, *boxes), strict=strict).module()
    moved = [box * 0.5 for box in boxes]
    assert torch.equal(program(FEATURES, *boxes), net(FEATURES, *boxes))
    assert torch.equal(program(-FEATURES, *moved), net(-FEATURES, *moved))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_for_any_number_of_images(strict):
    net = Net(PatchGraphBuilder(grid=2, background=True), edges=True)
    images = {0: torch.export.Dim("images")}
    program = torch.export.export(net, (FEATURES,), dynamic_shapes=(images,), strict=strict)
    more = torch.randn(7, 3, 9, 10)
    assert torch.equal(program.module()(more), net(more))


def test_bad_arguments_are_named_while_compiling():
    builder = PatchGraphBuilder(grid=2)
    compiled = torch.compile(lambda f: builder(f, images_per_group=3).x, backend="eager")
    with pytest.raises(InputError, match="`images_per_group`: expected a divisor of the 4 images"):
        compiled(FEATURES)


@pytest.mark.parametrize("sizes", [[3, 3], [1, 4, 0]])
def test_edges_from_a_list_compile(sizes):
    ptr = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    compiled = torch.compile(
        lambda x: x + complete_edge_index(ptr), fullgraph=True, backend="eager"
    )
    one = torch.ones((), dtype=torch.long)
    assert torch.equal(compiled(one), complete_edge_index(torch.tensor(ptr)) + 1)
