import math

import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.losses import SeedingLoss


def by_hand():
    """One photo of two classes (the first one tagged), four positions."""
    scores = torch.tensor([[[[1.0, -1.0, 5.0, 0.5]], [[2.0, 0.5, 0.0, -3.0]]]])
    reference = torch.tensor([[[[0.8, 0.1, 0.4, 0.6]], [[0.9, 0.9, 0.9, 0.9]]]])
    return scores, reference, torch.tensor([[1.0, 0.0]])


def test_value_by_hand():
    scores, reference, tags = by_hand()
    terms = [
        math.log(1 + math.e + math.e**2) - 1,  # class 1
        math.log(1 + math.exp(-1) + math.exp(0.5)),  # background
        math.log(1 + math.exp(0.5) + math.exp(-3)) - 0.5,  # class 1; the third is ignored
    ]
    loss = SeedingLoss()(scores, reference, tags)
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-6)


def test_labels_with_an_ignored_band_and_the_tag_filter():
    reference = torch.tensor([[[[0.6, 0.5, 0.3, 0.29, 0.7]], [[0.61, 0.9, 0.1, 0.2, 0.1]]]])
    seeding = SeedingLoss(foreground=0.5, background=0.3)
    both = seeding.labels(reference, torch.tensor([[1.0, 1.0]]))
    assert both.tolist() == [[[2, 2, 255, 0, 1]]]
    first = seeding.labels(reference, torch.tensor([[1.0, 0.0]]))
    assert first.tolist() == [[[1, 255, 255, 0, 1]]]  # 0.5 is not above 0.5, 0.3 not below 0.3
    none = seeding.labels(reference, torch.tensor([[0, 0]]))
    assert none.eq(0).all()


def test_all_ignored_is_zero_with_zero_gradient():
    scores = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = SeedingLoss()(scores, torch.full((2, 3, 4, 4), 0.4), torch.ones(2, 3))
    loss.backward()
    assert loss.item() == 0 and scores.grad.eq(0).all()


def test_gradcheck():
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 3, 2, dtype=torch.double, requires_grad=True)
    reference, tags = torch.rand(2, 3, 3, 2), torch.tensor([[1.0, 1, 0], [0, 1, 1]])
    loss = SeedingLoss()
    assert loss.labels(reference, tags).eq(255).any()
    assert loss(scores, reference, tags).dtype == torch.double
    assert torch.autograd.gradcheck(lambda s: loss(s, reference, tags), scores)


def test_descent_makes_the_labels():
    torch.manual_seed(0)
    reference, tags = torch.rand(2, 3, 4, 4), torch.tensor([[1.0, 1, 0], [0, 0, 1]])
    scores = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss, optimizer = SeedingLoss(), torch.optim.SGD([scores], lr=20.0)
    for _ in range(100):
        optimizer.zero_grad()
        loss(scores, reference, tags).backward()
        optimizer.step()
    label = loss.labels(reference, tags)
    found = torch.cat([torch.zeros(2, 1, 4, 4), scores], dim=1).argmax(dim=1)
    assert torch.equal(found[label != 255], label[label != 255])


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_bfloat16_scores_stay_finite(scale):
    torch.manual_seed(0)
    reference, tags = torch.rand(2, 3, 8, 8), torch.ones(2, 3)
    scores = (scale * torch.randn(2, 3, 8, 8)).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SeedingLoss()(scores, reference, tags)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and scores.grad.isfinite().all()
    exact = SeedingLoss()(scores.detach().double(), reference, tags)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_the_reference_is_resized_to_the_scores():
    scores, tags = torch.randn(1, 2, 4, 4), torch.ones(1, 2)
    reference = torch.rand(1, 2, 2, 2)
    whole = torch.nn.functional.interpolate(reference, (4, 4), mode="bilinear")
    loss = SeedingLoss()
    torch.testing.assert_close(loss(scores, reference, tags), loss(scores, whole, tags))


@pytest.mark.parametrize("foreground, background", [(0.3, 0.5), (1.0, 0.3), (0.5, 0.0)])
def test_bad_thresholds(foreground, background):
    with pytest.raises(InputError, match="0 < background <= foreground < 1"):
        SeedingLoss(foreground, background)


@pytest.mark.parametrize("part", range(3))
def test_shapes_that_disagree(part):
    arguments = list(by_hand())
    arguments[part] = arguments[part][:, :1]
    with pytest.raises(InputError, match=r"want \[B, K, h, w\]"):
        SeedingLoss()(*arguments)
    assert str(SeedingLoss(0.6, 0.2)) == "SeedingLoss(foreground=0.6, background=0.2)"


def test_parts_of_a_batch_with_one_count_have_the_loss_of_the_whole_in_the_mean():
    torch.manual_seed(0)
    scores, reference = torch.randn(4, 3, 5, 6), torch.rand(4, 3, 5, 6)
    tags = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])
    whole, halves = SeedingLoss(), (slice(0, 1), slice(1, 4))
    counts = [(whole.labels(reference[h], tags[h]) != 255).sum() for h in halves]
    assert counts[0] != counts[1]
    own = SeedingLoss(average=lambda count: sum(counts) / 2)
    losses = [own(scores[h], reference[h], tags[h]) for h in halves]
    torch.testing.assert_close(sum(losses) / 2, whole(scores, reference, tags))
