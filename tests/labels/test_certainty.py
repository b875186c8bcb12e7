import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgnn_geo.errors import InputError
from pgnn_geo.labels import certain_labels, seed_labels


def test_by_hand():
    labels = torch.tensor([[0, 0, 0, 1, 255, 2]], dtype=torch.uint8)
    attention = torch.tensor([[[0.30, 0.31, 0.0, 0.9, 0.9, 0.2]], [[0.1, 0.0, 0.5, 0.1, 0.1, 0.3]]])
    found = certain_labels(labels, attention, share=0.5, background=0.6)
    assert found.tolist() == [[0, 255, 255, 1, 255, 2]]  # 0.3 is not more than half of 0.6
    assert found.dtype == torch.uint8 and labels.tolist() == [[0, 0, 0, 1, 255, 2]]
    # With a power the score is that of each place: (1 - max A) ** 2, half of which is 0.245 there.
    found = certain_labels(labels, attention, share=0.5, background=None, power=2.0)
    assert found.tolist() == [[255, 255, 255, 1, 255, 2]]
    found = certain_labels(labels, 0.5 * attention, share=0.5, background=None, power=2.0)
    assert found.tolist() == [[0, 0, 0, 1, 255, 2]]


def test_maps_are_upsampled_as_torch_does():
    torch.manual_seed(0)
    attention, labels = torch.rand(3, 4, 5), torch.randint(0, 2, (31, 40), dtype=torch.uint8)
    peak = torch.nn.functional.interpolate(attention[None], (31, 40), mode="bilinear")[0].amax(0)
    found = certain_labels(labels, attention, share=0.8, background=0.7)
    expected = labels.clone()
    expected[(labels == 0) & (peak > 0.8 * 0.7)] = 255
    assert torch.equal(found, expected) and (found == 255).any() and (found == 0).any()


@given(st.integers(0, 2**31), st.floats(0.05, 0.95), st.floats(0.05, 1), st.integers(1, 3))
def test_the_labels_of_the_same_maps_lose_background_only(seed, background, share, classes):
    chance = torch.Generator().manual_seed(seed)
    attention = torch.rand(classes, 6, 5, generator=chance)
    labels = seed_labels(attention, (12, 9), background=background)
    found = certain_labels(labels, attention, share, background)
    assert torch.equal(found[labels != 0], labels[labels != 0])
    assert set(found[labels == 0].tolist()) <= {0, 255}
    less = certain_labels(labels, attention, share / 2, background)
    assert ((found == 255) <= (less == 255)).all()
    # All of the score: what exceeds it is no background, so nothing is left out.
    assert torch.equal(certain_labels(labels, attention, 1.0, background), labels)


def test_a_photo_without_classes_has_nothing_uncertain():
    labels = torch.zeros(4, 4, dtype=torch.uint8)
    assert torch.equal(certain_labels(labels, torch.zeros(0, 2, 2)), labels)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.1])
def test_bad_shares(share):
    with pytest.raises(InputError, match="'share' of the background score must lie in"):
        certain_labels(torch.zeros(4, 4), torch.zeros(1, 2, 2), share)


def test_shapes_that_do_not_fit():
    with pytest.raises(InputError, match=r"want \[H, W\] and \[k, h, w\]"):
        certain_labels(torch.zeros(1, 4, 4), torch.zeros(1, 2, 2))
    with pytest.raises(InputError, match=r"want \[H, W\] and \[k, h, w\]"):
        certain_labels(torch.zeros(4, 4), torch.zeros(2, 2))
