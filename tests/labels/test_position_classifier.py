import pytest
import torch
import torch.nn.functional as F

from pgnn_geo.errors import InputError
from pgnn_geo.labels import position_classifier
from pgnn_geo.labels.position_classifier import (
    Positions,
    confident_labels,
    fit_position_classifier,
    position_maps,
)


def positions(count=300):
    """Positions of two classes and background in five dimensions, every third with a label."""
    torch.manual_seed(0)
    truth = torch.randint(3, (count,))
    x = torch.randn(3, 5)[truth] + torch.randn(count, 5)
    label = torch.where(torch.arange(count) % 3 == 0, truth, -1)
    allowed = torch.ones(count, 3, dtype=torch.bool)
    allowed[truth != 1, 1] = False
    return Positions(x, label, allowed), truth


def objective(w, given, penalty, partial, balance):
    """As the docstring has it, with torch's own cross entropy."""
    x, label, allowed = given
    logits = x @ w[:, :-1].t() + w[:, -1]
    inside = (logits.softmax(dim=1) * allowed).sum(dim=1)
    share = torch.bincount(label[label >= 0]).double() ** -balance
    loss = F.cross_entropy(logits, label, share, ignore_index=-1)
    return loss - partial * inside.log().mean() + penalty / 2 * w[:, :-1].square().sum()


@pytest.mark.parametrize(("partial", "balance"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.5), (0.3, 1.0)])
def test_the_gradient_vanishes_at_what_is_found(partial, balance):
    given, _ = positions()
    given = given._replace(label=torch.where(torch.arange(300) % 5 == 0, -1, given.label))
    found = fit_position_classifier(given, 1e-2, partial, balance, iterations=300)
    w = found.double().requires_grad_()
    given = given._replace(features=given.features.double())
    objective(w, given, 1e-2, partial, balance).backward()
    assert w.grad.abs().max() < 3e-5


def test_the_same_positions_give_the_same_bits_and_chunks_the_same_weights(monkeypatch):
    given, _ = positions()
    whole = fit_position_classifier(given, 1e-2, iterations=300)
    assert torch.equal(whole, fit_position_classifier(given, 1e-2, iterations=300))
    monkeypatch.setattr(position_classifier, "_CHUNK", 64)
    parts = fit_position_classifier(given, 1e-2, iterations=300)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-3)


def test_tags_of_unlabelled_positions_teach_as_well():
    given, truth = positions(900)
    rare = torch.where(torch.arange(900) % 90 == 0, truth, -1)  # ten labels
    given = given._replace(features=given.features[:600], label=rare[:600])
    given = given._replace(
        allowed=F.one_hot(truth[:600], 3).bool() | torch.tensor([1, 0, 0]).bool()
    )
    new, objects = positions(900)[0].features[600:], truth[600:] > 0

    def right(partial):
        w = fit_position_classifier(given, 1e-2, partial)
        found = (new @ w[:, :-1].t() + w[:, -1])[:, 1:].argmax(dim=1) + 1
        return (found == truth[600:])[objects].float().mean()

    assert right(1.0) > right(0.0) + 0.05


def test_confident_labels_by_hand():
    maps = torch.tensor([[0.9, 0.2], [0.4, 0.1], [0.1, 0.2], [0.1, 0.9]])
    tags = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]])
    assert confident_labels(maps, tags).tolist() == [1, -1, 0, 0]
    with pytest.raises(InputError, match="want 0 < background <= foreground < 1"):
        confident_labels(maps, tags, foreground=0.2)


def test_maps_are_a_softmax_over_background_and_tags():
    torch.manual_seed(1)
    w, x = torch.randn(4, 6), torch.randn(7, 5)
    tags = torch.tensor([1, 0, 1]).expand(7, 3)
    maps = position_maps(w, x, tags)
    logits = (x @ w[:, :-1].t() + w[:, -1])[:, [0, 1, 3]]
    torch.testing.assert_close(maps[:, [0, 2]], logits.softmax(dim=1)[:, 1:])
    assert not maps[:, 1].any()


def test_wrong_input_is_named():
    given, _ = positions()
    with pytest.raises(InputError, match="No position has a label"):
        fit_position_classifier(given._replace(label=torch.full((300,), -1)))
    with pytest.raises(InputError, match=r"want \[N, C\], \[N\] and \[N, K \+ 1\]"):
        fit_position_classifier(given._replace(label=given.label[:5]))
