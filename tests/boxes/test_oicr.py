import math

import pytest
import torch

from pgnn_geo.boxes.image_boxes import ImageBoxes
from pgnn_geo.boxes.oicr import image_loss, oicr_centres, oicr_labels, refinement_loss
from pgnn_geo.errors import InputError

# A cat on the left and a dog on the right of a drawing of 100 x 40; areas of overlap by hand:
PROPOSALS = torch.tensor(
    [
        [0.0, 0.0, 40.0, 40.0],  # 0: the cat
        [0.0, 0.0, 40.0, 30.0],  # 1: most of it, IoU 1200 / 1600 = 0.75
        [0.0, 0.0, 20.0, 40.0],  # 2: half of it, IoU 800 / 1600 = 0.5
        [30.0, 0.0, 70.0, 40.0],  # 3: between, IoU with either 400 / 2800 = 1 / 7
        [60.0, 0.0, 100.0, 40.0],  # 4: the dog
        [64.0, 0.0, 100.0, 40.0],  # 5: most of it, IoU 1440 / 1600 = 0.9
        [45.0, 0.0, 55.0, 10.0],  # 6: neither
    ]
)
SCORES = torch.tensor(  # cat, cow, dog
    [
        [0.6, 0.0, 0.1],
        [0.5, 0.9, 0.0],
        [0.2, 0.0, 0.0],
        [0.1, 0.1, 0.1],
        [0.1, 0.0, 0.3],
        [0.0, 0.0, 0.2],
        [0.0, 0.0, 0.0],
    ]
)
TAGS = torch.tensor([1.0, 0.0, 1.0])  # there is no cow, whatever proposal 1 may seem to be


def test_the_centre_of_each_tagged_class_is_its_best_proposal():
    centres = oicr_centres(PROPOSALS, SCORES.requires_grad_(), TAGS)
    assert torch.equal(centres.boxes, PROPOSALS[[0, 4]])
    assert centres.classes.tolist() == [1, 3]
    assert centres.scores.tolist() == pytest.approx([0.6, 0.3])
    assert not centres.scores.requires_grad


def test_labels_of_a_drawing():
    centres = oicr_centres(PROPOSALS, SCORES, TAGS)
    labels, weights = oicr_labels(PROPOSALS, centres)
    assert labels.tolist() == [1, 1, 0, 0, 3, 3, 0]  # half is not more than half
    # The one between goes with the first of its equals, as does the one that touches neither.
    assert weights.tolist() == pytest.approx([0.6, 0.6, 0.6, 0.6, 0.3, 0.3, 0.6])


@pytest.mark.parametrize(
    ("foreground", "background", "ignored"),
    [
        (0.5, (0.0, 0.3), [2]),  # a band below the foreground
        (0.5, (0.1, 0.5), [6]),  # what is far from everything
        (0.8, (0.0, 0.4), [1, 2]),
        (0.5, (0.2, 0.3), [2, 3, 6]),
    ],
)
def test_what_is_ignored(foreground, background, ignored):
    centres = oicr_centres(PROPOSALS, SCORES, TAGS)
    labels, weights = oicr_labels(PROPOSALS, centres, foreground, background)
    assert (weights == 0).nonzero()[:, 0].tolist() == ignored
    assert not labels[ignored].any()


def test_no_proposal_is_the_centre_of_two_classes():
    scores = torch.tensor([[0.9, 0.95], [0.1, 0.2], [0.3, 0.0]])
    centres = oicr_centres(PROPOSALS[:3], scores, torch.ones(2))
    assert centres.classes.tolist() == [2, 1]  # the surest class chooses first
    assert torch.equal(centres.boxes, PROPOSALS[[0, 2]])
    assert centres.scores.tolist() == pytest.approx([0.95, 0.3])
    one = oicr_centres(PROPOSALS[:1], scores[:1], torch.ones(2))
    assert one.classes.tolist() == [2]


def test_scores_of_zero_still_give_a_centre():
    centres = oicr_centres(PROPOSALS, torch.zeros(7, 3), TAGS)
    assert sorted(centres.classes.tolist()) == [1, 3]
    assert not oicr_labels(PROPOSALS, centres).weights.any()


def test_no_proposals_and_no_tags():
    none = oicr_centres(torch.zeros(0, 4), torch.zeros(0, 3), TAGS)
    assert len(none) == 0
    labels, weights = oicr_labels(torch.zeros(0, 4), none)
    assert labels.shape == weights.shape == (0,) and labels.dtype == torch.long
    untagged = oicr_centres(PROPOSALS, SCORES, torch.zeros(3))
    labels, weights = oicr_labels(PROPOSALS, untagged)
    assert not labels.any() and not weights.any()
    loss = refinement_loss(torch.zeros(0, 4, requires_grad=True), labels[:0], weights[:0])
    loss.backward()
    assert loss.item() == 0


def test_ranges_of_overlap():
    for foreground, background in ((0.5, (0.0, 0.6)), (0.5, (0.4, 0.3)), (1.1, (0.0, 0.5))):
        with pytest.raises(InputError, match="foreground="):
            oicr_labels(PROPOSALS, ImageBoxes.empty(), foreground, background)


def test_image_loss_by_hand():
    scores = torch.tensor([[0.5, 0.25], [1.0, 0.0]])
    tags = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expected = (-math.log(0.5) - math.log(0.75)) / 2
    assert image_loss(scores, tags, eps=1e-9).item() == pytest.approx(expected, rel=1e-5)
    # Where a sum is all wrong, the clamp keeps the loss finite.
    wrong = image_loss(torch.tensor([[0.0, 1.0]]), tags[:1], eps=1e-6)
    assert wrong.item() == pytest.approx(-2 * math.log(1e-6), rel=1e-2)
    none = image_loss(torch.zeros(0, 2, requires_grad=True), torch.zeros(0, 2))
    none.backward()
    assert none.item() == 0


def test_refinement_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    loss = refinement_loss(logits, torch.tensor([1, 0]), torch.tensor([1.0, 0.5]))
    assert loss.item() == pytest.approx((math.log(2) - 0.5 * math.log(3 / 4)) / 2, rel=1e-5)
