import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch
from torch_geometric.testing import onlyCUDA, withCUDA
from torchvision.ops import roi_align

from pgnn_geo.errors import InputError
from pgnn_geo.graph import PatchGraphBuilder, complete_edge_index, stitch

NO_BOXES = torch.zeros(0, 4)
grid = PatchGraphBuilder(grid=2)
box = PatchGraphBuilder(box_size=3)
box_background = PatchGraphBuilder(box_size=3, background=True)


def random_boxes(counts, h, w, dtype=torch.float):
    out = []
    for k in counts:
        start = torch.rand(k, 2, dtype=dtype) * torch.tensor([w - 1, h - 1])
        room = torch.tensor([w, h]) - start
        out.append(torch.cat([start, start + room * (0.1 + 0.9 * torch.rand(k, 2))], dim=1))
    return out


def test_repr():
    assert repr(grid) == "PatchGraphBuilder(grid=2, background=False)"
    assert repr(box_background) == "PatchGraphBuilder(box_size=3, background=True)"


def test_cells_by_hand():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    batch = grid(features)
    assert batch.x[:, 0].tolist() == [
        [[0, 1], [4, 5]],
        [[2, 3], [6, 7]],
        [[8, 9], [12, 13]],
        [[10, 11], [14, 15]],
    ]
    assert batch.pos.tolist() == [[0, 0, 2, 2], [2, 0, 4, 2], [0, 2, 2, 4], [2, 2, 4, 4]]
    assert batch.node_class.tolist() == [0, 0, 0, 0]
    assert batch.num_graphs == 1


def test_padding_repeats_the_border_evenly():
    features = torch.arange(15.0).view(1, 1, 3, 5)
    batch = PatchGraphBuilder(grid=4)(features)
    # 3 x 5 -> 4 x 8: one row below, one column before and two after.
    padded = F.pad(features, (1, 2, 0, 1), mode="replicate")
    assert torch.equal(batch.x[:, 0].reshape(4, 4, 2), padded.view(4, 4, 2))
    assert batch.pos[:4].tolist() == [[0, 0, 1, 1], [1, 0, 3, 1], [3, 0, 5, 1], [5, 0, 5, 1]]
    assert batch.pos[-1].tolist() == [5, 3, 5, 3]


def test_grid_background_is_the_average_pooled_image():
    features = torch.randn(2, 3, 6, 5)
    batch = PatchGraphBuilder(grid=2, background=True)(features, node_class=torch.full((8,), 3))
    x = batch.x.view(2, 5, 3, 3, 3)
    torch.testing.assert_close(x[:, -1], F.adaptive_avg_pool2d(features, 3))
    assert torch.equal(x[:, :4].reshape(8, 3, 3, 3), grid(features).x)
    assert batch.node_class.tolist() == [3, 3, 3, 3, 0] * 2
    assert batch.pos[4].tolist() == [0, 0, 5, 6]
    assert torch.equal(stitch(batch), features)


@pytest.mark.parametrize("shape", [(8,), (2, 2, 2)])
def test_node_class_of_cells(shape):
    node_class = torch.arange(8, dtype=torch.int32).view(shape)
    batch = grid(torch.randn(2, 3, 4, 4), node_class=node_class)
    assert batch.node_class.dtype == torch.long and batch.node_class.tolist() == list(range(8))


def test_boxes_are_those_of_roi_align():
    features = torch.randn(3, 4, 9, 11)
    boxes = random_boxes([2, 0, 3], 9, 11)
    box_class = [torch.tensor([1, 2]), torch.tensor([]), torch.tensor([3, 0, 4])]
    batch = box(features, boxes=boxes, box_class=box_class)
    torch.testing.assert_close(batch.x, roi_align(features, boxes, 3, aligned=True))
    assert torch.equal(batch.pos, torch.cat(boxes))
    assert batch.node_class.tolist() == [1, 2, 3, 0, 4]
    assert batch.image_batch.tolist() == [0, 0, 2, 2, 2]


def test_background_comes_last_in_its_image():
    features = torch.randn(3, 4, 9, 11)
    boxes = random_boxes([2, 0, 3], 9, 11)
    box_class = [torch.tensor([1, 2]), torch.tensor([]), torch.tensor([3, 5, 4])]
    batch = box_background(features, images_per_group=3, boxes=boxes, box_class=box_class)
    is_box = torch.tensor([True, True, False, False, True, True, True, False])
    torch.testing.assert_close(batch.x[is_box], roi_align(features, boxes, 3, aligned=True))
    assert torch.equal(batch.pos[is_box], torch.cat(boxes))
    assert batch.pos[~is_box].tolist() == [[0, 0, 11, 9]] * 3
    assert batch.node_class.tolist() == [1, 2, 0, 0, 3, 5, 4, 0]
    assert batch.image_batch.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    # Nothing covers the second image.
    torch.testing.assert_close(batch.x[3], F.adaptive_avg_pool2d(features[1], 3))


def test_background_averages_what_is_uncovered():
    features = torch.randn(1, 2, 6, 6, dtype=torch.double)
    # Overlaps columns 0 to 3 of rows 0 and 1, though it ends inside the pixels.
    boxes = [torch.tensor([[0.0, 0.0, 3.2, 1.5]])]
    node = box_background(features, boxes=boxes).x[-1]
    free = torch.ones(6, 6, dtype=torch.bool)
    free[:2, :4] = False
    for i in range(3):
        for j in range(3):
            cell = features[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1)
            if i == 0 and j < 2:  # fully covered cells take the average of all that is free
                cell = features[0][:, free]
            torch.testing.assert_close(node[:, i, j], cell.mean(1))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_fully_covered_image_is_average_pooled(h, w, p, seed):
    features = torch.randn(1, 2, h, w, generator=torch.Generator().manual_seed(seed))
    boxes = [torch.tensor([[0.0, 0.0, w, h / 2], [0.0, h / 2, w, h]])]
    batch = PatchGraphBuilder(box_size=p, background=True)(features, boxes=boxes)
    torch.testing.assert_close(batch.x[-1], F.adaptive_avg_pool2d(features[0], p))


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(["grid", "box"]),
)
@settings(deadline=None, max_examples=25)
def test_batching_k_groups_equals_k_calls(counts, background, kind):
    sizes = [len(c) for c in counts]
    features = torch.randn(sum(sizes), 2, 5, 7)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) * 3 + 1
    boxes = random_boxes([k for c in counts for k in c], 5, 7)
    cut = {"grid": 2} if kind == "grid" else {"box_size": 2}
    builder = PatchGraphBuilder(**cut, background=background)
    extra = {} if kind == "grid" else {"boxes": boxes}
    batch = builder(features, group, edges=True, **extra)
    assert batch.validate() and batch.num_graphs == len(sizes)
    start = 0
    pieces = []
    for size in sizes:
        part = slice(start, start + size)
        extra = {} if kind == "grid" else {"boxes": boxes[part]}
        pieces.append(builder(features[part], edges=True, **extra)[0])
        start += size
    expected = Batch.from_data_list(pieces)
    for key in ("pos", "node_class", "image_batch", "batch", "ptr", "edge_index"):
        assert torch.equal(batch[key], expected[key]), key
    torch.testing.assert_close(batch.x, expected.x)
    assert batch.geometry == expected.geometry
    assert torch.equal(batch.edge_index, complete_edge_index(batch.ptr))


@pytest.mark.parametrize(
    "groups", [{"images_per_group": 3}, {"group": torch.tensor([2, 2, 2, 5, 5, 5])}]
)
def test_groups_by_size_or_ids(groups):
    batch = grid(torch.randn(6, 1, 2, 2), **groups)
    assert batch.ptr.tolist() == [0, 12, 24] and batch[1].num_images == 3


def test_edge_index_is_written_when_its_form_is_asked_for():
    batch = grid(torch.randn(2, 1, 4, 4), images_per_group=1, as_edge_index=True)
    assert isinstance(batch.edge_index, EdgeIndex)
    assert torch.equal(batch.edge_index.as_tensor(), complete_edge_index(batch.ptr))


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_every_image_has_its_nodes_in_order(sizes, s, h, w, background):
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    features = torch.randn(sum(sizes), 2, h, w)
    batch = PatchGraphBuilder(grid=s, background=background)(features, group)
    nodes = s * s + background
    assert batch.num_nodes == nodes * sum(sizes) == len(batch.x)
    assert batch.image_batch.tolist() == [i for i in range(sum(sizes)) for _ in range(nodes)]
    assert torch.equal(batch.batch, group[batch.image_batch])
    assert batch.ptr.diff().tolist() == [nodes * n for n in sizes]
    assert batch.max_num_nodes == nodes * max(sizes) and batch.num_images == sum(sizes)
    # The cells of an image tile it; those that are padding alone have no area.
    x1, y1, x2, y2 = batch[0].pos[: s * s].unbind(1)
    assert ((x2 - x1) * (y2 - y1)).sum() == h * w


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.float, torch.double])
@pytest.mark.parametrize("builder", [grid, box_background])
def test_dtypes(builder, dtype):
    features = torch.randn(2, 3, 6, 7)
    extra = {} if builder is grid else {"boxes": random_boxes([2, 0], 6, 7)}
    batch = builder(features.to(dtype), **extra)
    assert batch.x.dtype == dtype and batch.pos.dtype == torch.float
    expected = builder(features.to(dtype).float(), **extra)
    torch.testing.assert_close(batch.x.float(), expected.x, rtol=0.01, atol=0.01)
    out = stitch(batch)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), stitch(expected), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.long, torch.double, torch.half])
def test_boxes_of_any_number_type(dtype):
    features = torch.randn(1, 3, 6, 7)
    boxes = [torch.tensor([[1, 1, 4, 5]], dtype=dtype)]
    expected = box(features, boxes=[boxes[0].float()])
    assert torch.equal(box(features, boxes=boxes).x, expected.x)


@pytest.mark.parametrize("background", [False, True])
def test_gradients_of_boxes(background):
    features = torch.randn(2, 2, 5, 4, dtype=torch.double, requires_grad=True)
    boxes = random_boxes([2, 0], 5, 4)
    builder = PatchGraphBuilder(box_size=2, background=background)
    assert torch.autograd.gradcheck(lambda f: builder(f, boxes=boxes).x, features)


def test_gradients_of_cells():
    features = torch.randn(1, 2, 5, 3, dtype=torch.double, requires_grad=True)
    builder = PatchGraphBuilder(grid=2, background=True)
    assert torch.autograd.gradcheck(lambda f: builder(f).x, features)


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_channels_last(size):
    features = torch.randn(2, 3, *size)
    expected = grid(features)
    batch = grid(features.to(memory_format=torch.channels_last))
    assert torch.equal(batch.x, expected.x)
    assert batch.x.is_contiguous(memory_format=torch.channels_last)
    out = stitch(batch)
    assert torch.equal(out, features) and out.is_contiguous(memory_format=torch.channels_last)
    assert stitch(expected).is_contiguous()


def test_non_contiguous_features():
    features = torch.randn(2, 4, 6, 3).transpose(1, 3)[:, :, ::2]
    batch = grid(features)
    assert torch.equal(batch.x, grid(features.contiguous()).x)
    assert torch.equal(stitch(batch), features)


F2 = torch.randn(2, 3, 4, 5)
LONG = torch.zeros(2, dtype=torch.long)
BAD_CALLS = {
    "rank": (grid, {"features": torch.randn(3, 4, 5)}, "`features`: expected .* got float32"),
    "integer": (grid, {"features": torch.ones(1, 1, 2, 2).long()}, "`features`: .* got int64"),
    "empty": (grid, {"features": torch.zeros(1, 1, 0, 2)}, "`features`: .*non-empty"),
    "no tensor": (grid, {"features": None}, "`features`: .* got None"),
    "unsorted": (grid, {"group": torch.tensor([1, 0])}, r"`group`: .* sorted ids, got \[1, 0\]"),
    "group length": (grid, {"group": torch.zeros(3).long()}, r"`group`: expected .* int64 \[2\]"),
    "group type": (grid, {"group": torch.zeros(2)}, "`group`: expected .* int64 .* got float32"),
    "group a number": (grid, {"group": 2}, "`group`: expected .* got 2; .* `images_per_group`"),
    "per group": (grid, {"images_per_group": 3}, "`images_per_group`: .* the 2 images, got 3"),
    "per group 0": (grid, {"images_per_group": 0}, "`images_per_group`: expected a divisor"),
    "per group 1.0": (grid, {"images_per_group": 1.0}, "`images_per_group`: .* got 1.0"),
    "both": (grid, {"group": LONG, "images_per_group": 1}, "`group` and `images_per_group`"),
    "class shape": (grid, {"node_class": LONG}, r"`node_class`: expected int64 \[8\] or"),
    "class type": (grid, {"node_class": torch.zeros(8)}, "`node_class`: expected integers"),
    "class range": (grid, {"node_class": torch.full((8,), -1)}, "`node_class`: .* got -1"),
    "class device": (grid, {"node_class": torch.zeros(8).to("meta")}, "`node_class`: .* got meta"),
    "boxes on grid": (grid, {"boxes": [NO_BOXES] * 2}, "`boxes`: expected None"),
    "box class on grid": (grid, {"box_class": [LONG] * 2}, "`box_class`: expected None"),
    "class on boxes": (box, {"node_class": LONG}, "`node_class`: expected None"),
    "no boxes": (box, {}, "`boxes`: expected a list of 2 tensors .* got None"),
    "boxes as tensor": (box, {"boxes": torch.zeros(2, 1, 4)}, "`boxes`: expected a list"),
    "few boxes": (box, {"boxes": [NO_BOXES]}, "`boxes`: expected a list of 2 .* got 1 entries"),
    "box rank": (box, {"boxes": [NO_BOXES, torch.zeros(4)]}, r"`boxes\[1\]`: .* got float32 \[4\]"),
    "box device": (box, {"boxes": [NO_BOXES, NO_BOXES.to("meta")]}, "`boxes`: expected one device"),
    "boxes away": (box, {"boxes": [torch.zeros(1, 4).to("meta")] * 2}, "`boxes`: .* got meta"),
}
BAD_BOXES = {
    "right": [0.0, 0.0, 5.5, 1.0],
    "below": [0.0, 0.0, 5.0, 4.25],
    "left": [-0.5, 0.0, 5.0, 4.0],
    "above": [0.0, -1.0, 5.0, 4.0],
    "degenerate": [2.0, 2.0, 2.0, 3.0],
    "upside down": [2.0, 3.0, 4.0, 2.0],
    "nan": [0.0, 0.0, float("nan"), 1.0],
    "inf": [0.0, 0.0, 1.0, float("inf")],
}
ONE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_arguments(case):
    builder, arguments, message = BAD_CALLS[case]
    with pytest.raises(InputError, match=message):
        builder(**({"features": F2} | arguments))


@pytest.mark.parametrize("case", BAD_BOXES)
def test_bad_boxes(case):
    bad = BAD_BOXES[case]
    message = r"`boxes\[1\]\[1\]`: expected 0 <= x1 < x2 <= 5 and 0 <= y1 < y2 <= 4 .* got "
    with pytest.raises(InputError, match=message + re.escape(str(bad))):
        box(F2, boxes=[ONE, torch.cat([ONE, torch.tensor([bad])])])


@pytest.mark.parametrize(
    ("box_class", "message"),
    [
        ([torch.tensor([1])], "`box_class`: expected a list of 2"),
        ([torch.tensor([1]), torch.tensor([1])], "expected 2 classes for the boxes of image 1"),
        ([torch.tensor([1]), torch.tensor([1, -2])], "`box_class`: .* got -2"),
        ([torch.tensor([1.0]), torch.tensor([1.0, 2.0])], "`box_class`: expected integers"),
        ([torch.tensor([[1]]), torch.tensor([1, 2])], r"`box_class\[0\]`: expected a tensor \[k\]"),
    ],
)
def test_bad_box_class(box_class, message):
    with pytest.raises(InputError, match=message):
        box(F2, boxes=[ONE, ONE.repeat(2, 1)], box_class=box_class)


@pytest.mark.parametrize(
    "kwargs", [{}, {"grid": 2, "box_size": 2}, {"grid": 0}, {"box_size": -1}, {"grid": 2.0}]
)
def test_bad_constructor(kwargs):
    with pytest.raises(InputError, match=r"`(grid|box_size)`"):
        PatchGraphBuilder(**kwargs)


def test_check_finite():
    builder = PatchGraphBuilder(grid=2, check_finite=True)
    builder(torch.full((1, 1, 2, 2), 3e38))  # whose sum overflows
    features = F2.clone()
    for bad in ("inf", "-inf", "nan"):
        features[1, 2, 3, 4] = float(bad)
        with pytest.raises(InputError, match=f"got {bad} in image 1, channel 2, row 3, column 4"):
            builder(features)
    assert grid(features).x.isnan().any()


@withCUDA
@pytest.mark.parametrize("builder", [grid, box, box_background])
def test_device(builder, device):
    boxes = [b.to(device) for b in random_boxes([2, 0], 4, 5)]
    extra = {} if builder is grid else {"boxes": boxes}
    batch = builder(F2.to(device), edges=True, **extra)
    assert {batch[k].device for k in ("x", "pos", "batch", "ptr", "edge_index")} == {device}
    assert batch.cpu().validate() and stitch(batch).device == device


@onlyCUDA
def test_grid_never_waits_for_the_device():
    features = torch.randn(6, 3, 8, 8, device="cuda")
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for kwargs in ({"images_per_group": 3}, {"group": group}, {"edges": True}):
            stitch(PatchGraphBuilder(grid=2, background=True)(features, **kwargs))
    finally:
        torch.cuda.set_sync_debug_mode(mode)
