import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnn_geo.errors import InputError
from pgnn_geo.graph import PatchGraphBuilder, stitch


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.booleans(),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
)  # fmt: skip
@settings(deadline=None, max_examples=25)
def test_stitch_of_split_is_identity(h, w, grid, background, memory_format):
    features = torch.randn(2, 3, h, w).contiguous(memory_format=memory_format)
    batch = PatchGraphBuilder(grid=grid, background=background)(features, images_per_group=1)
    assert torch.equal(stitch(batch), features)


def test_other_channels_and_gradients_through_the_grid():
    batch = PatchGraphBuilder(grid=2)(torch.randn(2, 3, 5, 7))
    x = torch.randn(8, 5, 3, 4, dtype=torch.double, requires_grad=True)
    batch.x = x
    assert stitch(batch).shape == (2, 5, 5, 7)
    stitch(batch).sum().backward()
    # Each position counts once, the cropped padding not at all.
    assert x.grad.sum() == 2 * 5 * 5 * 7 and set(x.grad.unique().tolist()) == {0, 1}


def paste(x, boxes, size, reduce="max", background=False):
    """Stitches one image whose nodes are replaced by x [V, C, p, p]."""
    builder = PatchGraphBuilder(box_size=x.shape[-1], background=background)
    batch = builder(torch.zeros(1, 1, *size), boxes=[torch.tensor(boxes, dtype=torch.float)])
    batch.x = x
    return stitch(batch, reduce)


def test_overlaps_by_hand():
    x = torch.tensor([1.0, -3.0, -5.0]).view(3, 1, 1, 1)  # two boxes and the background
    boxes = [[0, 0, 2, 2], [1, 1, 3, 3]]
    out = paste(x, boxes, (3, 4), "max", background=True)
    assert out[0, 0].tolist() == [[1, 1, -5, -5], [1, 1, -3, -5], [-5, -3, -3, -5]]
    out = paste(x, boxes, (3, 4), "mean", background=True)
    assert out[0, 0].tolist() == [[1, 1, -5, -5], [1, -1, -3, -5], [-5, -3, -3, -5]]
    out = paste(x[:2], boxes, (3, 4), "max")
    assert out[0, 0].tolist() == [[1, 1, 0, 0], [1, 1, -3, 0], [0, -3, -3, 0]]


def test_resampling_by_hand():
    # Two positions over four pixels: their centres lie at 1 and 3, the pixels' at 0.5, ..., 3.5.
    x = torch.tensor([0.0, 8.0]).expand(2, 2).view(1, 1, 2, 2)
    assert paste(x, [[0, 0, 4, 1]], (1, 4))[0, 0].tolist() == [[0, 2, 6, 8]]
    # From 0.5 to 2.5 they lie at 1 and 2; pixels that the box only touches take the edge.
    assert paste(x, [[0.5, 0, 2.5, 1]], (1, 4))[0, 0].tolist() == [[0, 4, 8, 0]]


@given(
    st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3)
)
@settings(deadline=None, max_examples=25)
def test_resampling_is_that_of_interpolate(p, h, w, top, left):
    x = torch.randn(1, 3, p, p)
    expected = F.interpolate(x, (h, w), mode="bilinear", align_corners=False)
    out = paste(x, [[left, top, left + w, top + h]], (top + h + 1, left + w + 2))
    torch.testing.assert_close(out, F.pad(expected, (left, 2, top, 1)))


def test_background_fills_what_no_box_covers():
    x = torch.randn(2, 4, 3, 3)
    out = paste(x, [[1.5, 2, 4, 5]], (8, 6), background=True)
    expected = F.interpolate(x[1:], (8, 6), mode="bilinear", align_corners=False)
    box = F.interpolate(x[:1], (3, 5), mode="bilinear", align_corners=False)
    assert out.shape == expected.shape and box.shape[2] == 3
    free = torch.ones(8, 6, dtype=torch.bool)
    free[2:5, 1:4] = False
    torch.testing.assert_close(out[:, :, free], expected[:, :, free])
    assert not torch.isclose(out[:, :, ~free], expected[:, :, ~free]).any()


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_images_and_groups_do_not_mix(reduce):
    features = torch.randn(3, 2, 6, 7)
    boxes = [
        torch.tensor([[0.0, 0.0, 3.0, 3.0], [1.0, 1.0, 6.0, 5.5]]),
        torch.zeros(0, 4),
        torch.tensor([[0.0, 0.0, 7.0, 6.0]]),
    ]
    builder = PatchGraphBuilder(box_size=2, background=True)
    batch = builder(features, group=torch.tensor([0, 0, 1]), boxes=boxes)
    out = stitch(batch, reduce)
    for i in range(3):
        alone = stitch(builder(features[i : i + 1], boxes=boxes[i : i + 1]), reduce)
        torch.testing.assert_close(out[i : i + 1], alone)
    torch.testing.assert_close(stitch(batch[1], reduce), out[2:])


def test_constant_features_come_back_from_boxes():
    features = torch.full((2, 3, 6, 7), 2.5)
    boxes = [torch.tensor([[0.3, 1.0, 4.7, 3.2], [2.0, 2.0, 6.9, 6.0]]), torch.zeros(0, 4)]
    batch = PatchGraphBuilder(box_size=3, background=True)(features, boxes=boxes)
    for reduce in ("max", "mean"):
        torch.testing.assert_close(stitch(batch, reduce), features)


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_gradients_through_boxes(reduce):
    boxes = [torch.tensor([[0.0, 0.5, 3.0, 3.0], [1.0, 1.0, 3.5, 4.0]]), torch.zeros(0, 4)]
    batch = PatchGraphBuilder(box_size=2, background=True)(torch.zeros(2, 1, 4, 4), boxes=boxes)
    x = torch.randn(4, 2, 2, 2, dtype=torch.double, requires_grad=True)

    def run(x):
        batch.x = x
        return stitch(batch, reduce)

    assert torch.autograd.gradcheck(run, x)


def test_image_without_nodes_is_zero():
    builder = PatchGraphBuilder(box_size=2)
    batch = builder(torch.ones(2, 3, 4, 4), boxes=[torch.zeros(0, 4)] * 2)
    assert batch.num_nodes == 0
    assert torch.equal(stitch(batch), torch.zeros(2, 3, 4, 4))


def test_errors():
    batch = PatchGraphBuilder(grid=2)(torch.randn(1, 3, 4, 4))
    with pytest.raises(InputError, match="`reduce`: expected 'max' or 'mean', got 'sum'"):
        stitch(batch, "sum")
    with pytest.raises(InputError, match="`batch`: expected graphs of PatchGraphBuilder"):
        stitch(batch.x)
    for x in (batch.x[:3], batch.x[..., :1], batch.x.mean((2, 3))):
        changed = batch.clone()
        changed.x = x
        with pytest.raises(InputError, match=r"`batch.x`: expected \["):
            stitch(changed)
    batch = PatchGraphBuilder(box_size=2)(torch.randn(1, 3, 4, 4), boxes=[torch.ones(0, 4)])
    batch.x = torch.randn(1, 3, 2, 2)
    with pytest.raises(InputError, match=r"`batch.x`: expected 0 nodes"):
        stitch(batch)
