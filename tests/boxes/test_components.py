import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgnn_geo.boxes.components import component_boxes, connected_components


def flood(mask: Tensor) -> set[frozenset[tuple[int, int]]]:
    """The components by the textbook: one flood after another."""
    left = {(y, x) for y, x in mask.nonzero().tolist()}
    found = set()
    while left:
        stack = [left.pop()]
        component = set(stack)
        while stack:
            y, x = stack.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            component |= near
            stack += near
        found.add(frozenset(component))
    return found


def spiral(side: int) -> Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    for ring in range(0, side // 2, 2):
        mask[ring, ring : side - ring] = True
        mask[ring : side - ring, side - 1 - ring] = True
        mask[side - 1 - ring, ring : side - ring] = True
        mask[ring + 2 : side - ring, ring] = True
        mask[ring + 2, ring : ring + 2] = True
    return mask


def compare(masks: Tensor) -> None:
    labels = connected_components(masks)
    assert torch.equal(labels > 0, masks)
    boxes, owner, place = component_boxes(labels)
    found = []
    for n, mask in enumerate(masks):
        numbers = [v for v in labels[n].unique().tolist() if v]
        pixels = [frozenset(map(tuple, (labels[n] == v).nonzero().tolist())) for v in numbers]
        assert len(set(pixels)) == len(pixels) and set(pixels) == flood(mask)
        found += [(n, component) for component in pixels]
    assert len(found) == len(boxes)
    for n, component in found:
        y, x = (torch.tensor(v) for v in zip(*component, strict=True))
        row = int(place[n, y[0], x[0]])
        assert owner[row] == n
        assert boxes[row].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert int((place == row).sum()) == len(component)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    share=st.sampled_from([0.2, 0.4, 0.6]),
)
def test_components_are_those_of_a_flood(
    seed: int, size: tuple[int, int, int], share: float
) -> None:
    compare(torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share)


def test_a_long_and_winding_component() -> None:
    mask = spiral(24)
    assert len(flood(mask)) == 1
    compare(mask[None])


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (2, 4, 0), (2, 4, 4)])
def test_nothing_there(shape: tuple[int, int, int]) -> None:
    labels = connected_components(torch.zeros(shape, dtype=torch.bool))
    boxes, owner, place = component_boxes(labels)
    assert labels.shape == place.shape == shape
    assert boxes.shape == (0, 4) and owner.shape == (0,)
