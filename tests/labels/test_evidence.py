import pytest
import torch
import torch.nn.functional as F

from pgnn_geo.errors import InputError
from pgnn_geo.labels.evidence import fit_tag_evidence, held_out_probabilities


@pytest.fixture
def photos():
    torch.manual_seed(0)
    tags = torch.rand(60, 3) < 0.4
    tags[0] = False
    return torch.randn(60, 8) + tags.float() @ torch.randn(3, 8), tags


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_gradient_vanishes_at_what_is_found(photos, penalty):
    x, tags = (part.double() for part in photos)
    weight, bias = (part.double().requires_grad_() for part in fit_tag_evidence(x, tags, penalty))
    loss = F.binary_cross_entropy_with_logits(F.linear(x, weight, bias), tags, reduction="sum") / 60
    loss = loss + penalty / 2 * (weight.square().sum() + bias.square().sum())
    loss.backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-6


def test_newton_finds_the_same(photos):
    x, tags = photos[0].double(), photos[1][:, 0].double()
    design = F.pad(x, (0, 1), value=1.0)
    w = torch.zeros(9, dtype=torch.double)
    for _ in range(30):
        p = (design @ w).sigmoid()
        gradient = design.t() @ (p - tags) / 60 + 0.01 * w
        hessian = design.t() * (p * (1 - p)) @ design / 60 + 0.01 * torch.eye(9)
        w = w - torch.linalg.solve(hessian, gradient)
    weight, bias = fit_tag_evidence(x, photos[1], 0.01)
    torch.testing.assert_close(torch.cat([weight[0], bias[:1]]), w.float(), rtol=0, atol=1e-5)


def test_a_class_that_no_photo_has_gets_no_evidence(photos):
    x, tags = photos
    weight, bias = fit_tag_evidence(x, F.pad(tags, (0, 1)))
    assert weight[3].norm() < 0.3 * weight[:3].norm(dim=1).min() and bias[3] < -1


def test_what_cannot_be_told_from_tags_is_refused(photos):
    x, tags = photos
    tags = tags.clone()
    tags[:, 1] = True
    with pytest.raises(InputError, match="All 60 photos have the tag of class 2"):
        fit_tag_evidence(x, tags)
    with pytest.raises(InputError, match="penalty=0"):
        fit_tag_evidence(*photos, penalty=0)
    with pytest.raises(InputError, match=r"want \[M, C\] and \[M, K\]"):
        fit_tag_evidence(x[:5], photos[1])


def test_pairs_that_are_not_known_say_nothing():
    torch.manual_seed(0)
    x, tags = torch.randn(40, 5), torch.rand(40, 2) < 0.5
    known = torch.ones(40, 2, dtype=torch.bool)
    known[:15, 1] = False
    wrong = tags.clone()
    wrong[:15, 1] ^= True  # which would matter if it were looked at
    found = fit_tag_evidence(x, tags, 0.01, known)
    again = fit_tag_evidence(x, wrong, 0.01, known)
    torch.testing.assert_close(found, again, atol=1e-5, rtol=0)
    assert (fit_tag_evidence(x, wrong, 0.01).weight[1] - found.weight[1]).abs().max() > 0.1
    alone = fit_tag_evidence(x, tags, 0.01)
    torch.testing.assert_close(found.weight[0], alone.weight[0], atol=1e-5, rtol=0)


def test_held_out_probabilities_are_of_a_fit_to_other_photos():
    torch.manual_seed(0)
    x, tags = torch.randn(23, 5), torch.rand(23, 2) < 0.5
    found = held_out_probabilities(x, tags, 0.01, folds=4)
    for photo in (0, 5, 22):
        others = torch.arange(23) % 4 != photo % 4
        weight, bias = fit_tag_evidence(x[others], tags[others], 0.01)
        expected = 1 / (1 + (-(weight @ x[photo] + bias)).exp())
        torch.testing.assert_close(found[photo], expected, atol=1e-5, rtol=0)
