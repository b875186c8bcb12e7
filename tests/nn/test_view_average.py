import pytest
import torch
import torch.nn.functional as F

from pgnn_geo.errors import InputError
from pgnn_geo.nn import view_average
from pgnn_geo.nn.view_average import ViewAverage

SIZES = [(1, 1), (5, 7), (12, 9), (37, 50), (12, 50)]


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return [torch.randn(4, 12, 9), torch.randn(4, 6, 5), torch.randn(4, 1, 1)]


def reference(maps, size, logits=True):
    full = [F.interpolate(m[None], size, mode="bilinear", align_corners=False)[0] for m in maps]
    return torch.stack([m.softmax(0) if logits else m for m in full]).mean(0)


@pytest.mark.parametrize("strip", [1, 700, 1 << 23])
@pytest.mark.parametrize("size", SIZES)
def test_strips_are_the_whole(maps, size, strip, monkeypatch):
    monkeypatch.setattr(view_average, "_STRIP", strip)
    views = ViewAverage(maps)
    expected = reference(maps, size)
    torch.testing.assert_close(views.probabilities(size), expected, rtol=0, atol=1e-5)
    assert torch.equal(views.labels(size).long(), views.probabilities(size).argmax(0))
    best = expected.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-5
    assert torch.equal(views.labels(size)[clear].long(), expected.argmax(0)[clear])


def test_some_labels_only(maps):
    labels = torch.tensor([0, 2, 5, 6])
    views = ViewAverage(maps, labels, num_labels=8)
    whole = views.probabilities((20, 30))
    assert whole.shape == (8, 20, 30)
    torch.testing.assert_close(whole[labels], reference(maps, (20, 30)), rtol=0, atol=1e-5)
    assert not whole[[1, 3, 4, 7]].any()
    assert set(views.labels((20, 30)).unique().tolist()) <= set(labels.tolist())


def test_interpolated_from_a_size(maps):
    views = ViewAverage(maps, torch.tensor([0, 2, 5, 6]), num_labels=8).at((12, 9))
    first = reference(maps, (12, 9))
    torch.testing.assert_close(views.maps[0], first, rtol=0, atol=1e-5)
    expected = reference([first], (40, 30), logits=False)
    result = views.probabilities((40, 30))[views.label_ids]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_half_precision_is_averaged_in_float32(maps):
    views = ViewAverage([m.bfloat16() for m in maps])
    assert views.probabilities((9, 9)).dtype == torch.float


def test_bad_arguments(maps):
    with pytest.raises(InputError, match="one or more maps"):
        ViewAverage([])
    with pytest.raises(InputError, match="the same labels"):
        ViewAverage([maps[0], maps[1][:2]])
    with pytest.raises(InputError, match="want 4 labels"):
        ViewAverage(maps, torch.arange(3))
