import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, nms, roi_align, roi_pool

from pgnn_geo.boxes.image_boxes import ImageBoxes
from pgnn_geo.boxes.weak_detector import WeakDetector, pool_boxes, select_boxes
from pgnn_geo.errors import InputError


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    options = {"num_classes": 3, "refinements": 2, "pool_size": 2, "hidden_channels": 8, **options}
    return WeakDetector("vgg_tiny", weights=None, freeze_stages=0, output_stride=8, **options)


def random_boxes(count, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * (side - 16)
    size = 8 + torch.rand(count, 2, generator=generator) * (side - 8 - low)
    return torch.cat([low, (low + size).clamp(max=side)], dim=1)


def test_scores_of_a_case_computed_by_hand():
    """Two proposals, two classes; the streams' logits are set by the biases of the last layers.

    What: softmax over classes of (ln 3, 0) is (3/4, 1/4) and of (0, 0) is (1/2, 1/2). Where:
    softmax over proposals of (ln 2, 0) is (2/3, 1/3) and of (0, ln 4) is (1/5, 4/5).
    """
    model = tiny(num_classes=2, hidden_channels=2, dropout=0.0)
    # The hidden layers pass on which proposal it is: (1, 0) or (0, 1).
    model.hidden = torch.nn.Identity()
    model.lin_class = torch.nn.Linear(2, 2, bias=False)
    model.lin_detection = torch.nn.Linear(2, 2, bias=False)
    model.lin_refine = torch.nn.ModuleList()
    ln = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()
    model.lin_class.weight.data = torch.tensor([[ln[2], 0.0], [0.0, 0.0]])
    model.lin_detection.weight.data = torch.tensor([[ln[1], 0.0], [0.0, ln[3]]])
    features = torch.zeros(1, 2, 4, 4)
    features[0, 0, :, :2] = 1  # the left half shows the first, the right half the second
    features[0, 1, :, 2:] = 1
    boxes = torch.tensor([[0.0, 0.0, 8.0, 31.0], [24.0, 0.0, 31.0, 31.0]])
    model.pool_size = 1
    output = model.forward_features(features, [boxes])
    expected = torch.tensor([[3 / 4 * 2 / 3, 1 / 4 * 1 / 5], [1 / 2 * 1 / 3, 1 / 2 * 4 / 5]])
    torch.testing.assert_close(output.proposal_scores, expected)
    torch.testing.assert_close(output.image_scores, expected.sum(0, keepdim=True))
    assert torch.equal(output.scores, output.proposal_scores)  # without refinements


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    classes=st.integers(1, 4),
    scale=st.floats(0.1, 1e3),
)
def test_sums_lie_in_the_unit_interval(counts, classes, scale):
    model = tiny(num_classes=classes, dropout=0.0)
    for layer in (model.lin_class, model.lin_detection):
        layer.weight.data *= 100 * scale
    features = torch.randn(len(counts), 128, 8, 8)
    boxes = [random_boxes(count, seed=count) for count in counts]
    output = model.forward_features(features, boxes)
    assert output.image_scores.shape == (len(counts), classes)
    assert ((output.image_scores >= 0) & (output.image_scores <= 1)).all()
    parts = output.proposal_scores.split(counts)
    sums = torch.stack([part.sum(0) for part in parts])
    torch.testing.assert_close(output.image_scores, sums, rtol=0, atol=1e-5)
    for scores in output.stage_scores:
        assert scores.shape == (sum(counts), classes) and ((scores >= 0) & (scores <= 1)).all()
    assert not output.image_scores[torch.tensor(counts) == 0].any()


def test_images_do_not_mix_and_order_does_not_matter():
    model = tiny().eval()
    images = torch.rand(2, 3, 64, 64)
    boxes = [random_boxes(5), random_boxes(7, seed=1)]
    both = model(images, boxes)
    assert both.image_batch.tolist() == [0] * 5 + [1] * 7 and len(both.refined) == 2
    alone = model(images[1:], boxes[1:])
    torch.testing.assert_close(both.proposal_scores[5:], alone.proposal_scores)
    torch.testing.assert_close(both.refined[1][5:], alone.refined[1])
    turned = model(images[1:], [boxes[1].flip(0)])
    torch.testing.assert_close(turned.image_scores, alone.image_scores)
    torch.testing.assert_close(turned.scores.flip(0), alone.scores)
    assert torch.equal(both.scores, both.refined[-1].softmax(1)[:, 1:])


@pytest.mark.parametrize("pool", ["max", "align"])
def test_pooling_is_that_of_torchvision(pool):
    features = torch.randn(2, 4, 8, 8, dtype=torch.bfloat16)
    boxes = [random_boxes(3), random_boxes(2, seed=1)]
    pooled, image_batch = pool_boxes(features, boxes, 3, 8, pool)
    assert image_batch.tolist() == [0, 0, 0, 1, 1] and pooled.dtype == torch.float
    if pool == "max":
        expected = roi_pool(features.float(), boxes, 3, 1 / 8)
    else:
        expected = roi_align(features.float(), boxes, 3, 1 / 8, 2, aligned=True)
    assert torch.equal(pooled, expected)


def test_a_box_sees_what_is_in_it():
    """At stride 8, 64 pixels are 8 positions; only the one at (5, 2) is lit."""
    features = torch.zeros(1, 1, 8, 8)
    features[0, 0, 2, 5] = 1
    inside = torch.tensor([[40.0, 16.0, 47.0, 23.0]])
    pooled, _ = pool_boxes(features, [torch.cat([inside, inside - 16])], 1, 8)
    assert pooled.flatten().tolist() == [1, 0]


@pytest.mark.parametrize("iou", [0.3, 0.6])
def test_suppression_is_that_of_torchvision_class_by_class(iou):
    boxes, scores = random_boxes(60), torch.rand(60, 3, generator=torch.Generator().manual_seed(1))
    tags = torch.tensor([1.0, 0.0, 1.0])
    found = select_boxes(boxes, scores, tags, nms=iou, min_score=0.4, max_boxes=1000, vote=False)
    assert set(found.classes.tolist()) == {1, 3}
    for label in (1, 3):
        own = scores[:, label - 1]
        rows = (own >= 0.4).nonzero()[:, 0]
        kept = rows[nms(boxes[rows], own[rows], iou)]
        of_class = found.pick(found.classes == label)
        assert torch.equal(of_class.boxes, boxes[kept])
        assert torch.equal(of_class.scores, own[kept])
    assert (found.scores.diff() <= 0).all()
    few = select_boxes(boxes, scores, tags, nms=iou, min_score=0.4, max_boxes=4, vote=False)
    assert torch.equal(few.boxes, found.boxes[:4])
    assert set(select_boxes(boxes, scores).classes.tolist()) == {1, 2, 3}


def test_boxes_that_are_kept_stand_in_the_middle_of_their_like():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 14], [0, 30, 10, 40], [0, 1, 10, 11]])
    scores = torch.tensor([[0.8, 0.0], [0.4, 0.0], [0.3, 0.0], [0.0, 0.9]])
    found = select_boxes(boxes, scores, nms=0.5)
    assert found.classes.tolist() == [2, 1, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8, 0.3]))
    middle = [0, 0, 10, (0.8 * 10 + 0.4 * 14) / 1.2]  # the other class has no say in it
    expected = torch.tensor([[0, 1, 10, 11], middle, [0, 30, 10, 40]])
    torch.testing.assert_close(found.boxes, expected)
    apart = select_boxes(boxes, scores, nms=0.75)  # overlaps by 0.71: neither suppressed nor heard
    torch.testing.assert_close(apart.boxes, boxes[[3, 0, 1, 2]])


def test_voting_keeps_boxes_within_their_voters():
    voters = ImageBoxes(random_boxes(40), torch.arange(40) % 2 + 1, torch.rand(40))
    best = voters.nms(0.4)
    moved = best.voted(voters, 0.4)
    assert torch.equal(moved.classes, best.classes) and torch.equal(moved.scores, best.scores)
    for i in range(len(best)):
        near = box_iou(best.boxes[i : i + 1], voters.boxes)[0] >= 0.4
        near &= voters.classes == best.classes[i]
        mean = np.average(voters.boxes[near], axis=0, weights=voters.scores[near])
        torch.testing.assert_close(moved.boxes[i], torch.from_numpy(mean).float())
    assert not torch.equal(moved.boxes, best.boxes)
    with torch.autocast("cpu", torch.bfloat16):  # or boxes would leave the photo
        assert torch.equal(best.voted(voters, 0.4).boxes, moved.boxes)
    assert len(ImageBoxes.empty().voted(voters)) == 0
    assert torch.equal(best.voted(ImageBoxes.empty()).boxes, best.boxes)


def test_detections_are_of_tagged_classes_in_the_image():
    model = tiny().eval()
    images, boxes = torch.rand(2, 3, 64, 64), [random_boxes(9), random_boxes(9, seed=2)]
    tags = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    first, second = model.detect(images, boxes, tags, vote=False)
    assert set(first.classes.tolist()) == {2} and len(second) == 0
    known = {tuple(box) for box in boxes[0].tolist()}
    assert {tuple(box) for box in first.boxes.tolist()} <= known
    everything = model.detect(images, boxes)
    assert set(everything[1].classes.tolist()) == {1, 2, 3}


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("counts", [(0, 4), (0, 0)])
def test_photos_without_a_proposal(counts, precision):
    model = tiny()
    boxes = [random_boxes(count) for count in counts]
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        output = model(torch.rand(2, 3, 64, 64), boxes)
        assert not output.image_scores[0].any()
        total = output.image_scores.sum() + sum(logits.sum() for logits in output.refined)
    total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    found = model.eval().detect(torch.rand(2, 3, 64, 64), boxes)
    assert len(found[0]) == 0 and (len(found[1]) > 0) == (counts[1] > 0)


def test_a_model_of_the_same_configuration():
    model = tiny(pool="align")
    again = WeakDetector.from_config(model.config)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and again.pool == "align"
    pretrained = {**model.config, "weights": "DEFAULT"}
    assert WeakDetector.from_config(pretrained).backbone.frozen_norm


def test_input_errors():
    for options, words in (
        ({"pool": "mean"}, "'pool'"),
        ({"pool_size": 0}, "'pool_size' must be 1"),
        ({"refinements": -1}, "'refinements' must be 0"),
        ({"num_classes": 0}, "'num_classes'"),
    ):
        with pytest.raises(InputError, match=words):
            tiny(**options)
    model = tiny()
    with pytest.raises(InputError, match="images"):
        model(torch.rand(3, 64, 64), [random_boxes(2)])
    with pytest.raises(InputError, match="each of 1 images"):
        model(torch.rand(1, 3, 64, 64), [random_boxes(2), random_boxes(2)])
    with pytest.raises(InputError, match=r"\[r, 4\]"):
        model(torch.rand(1, 3, 64, 64), [torch.zeros(0)])
