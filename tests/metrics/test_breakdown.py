import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnn_geo.errors import InputError
from pgnn_geo.metrics import ConfusionMatrix, ErrorBreakdown

KINDS = ("boundary", "missed", "spill", "confusion")


def kind_of(guess, truth, y, x, radius):
    """The kind of a pixel's error, by looking at its neighbours one by one."""
    around = truth[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
    if any(label not in (255, truth[y, x]) for label in around.ravel()):
        return "boundary"
    if guess[y, x] == 0:
        return "missed"
    return "spill" if truth[y, x] == 0 else "confusion"


def naive_iou(guesses, truths, num_classes):
    out = []
    for c in range(num_classes + 1):
        both = either = 0
        for guess, truth in zip(guesses, truths, strict=True):
            seen = (truth != 255) & (guess != 255)
            both += ((guess == c) & (truth == c) & seen).sum()
            either += (((guess == c) | (truth == c)) & seen).sum()
        out.append(both / either if either else math.nan)
    return np.array(out)


def naive_gains(guesses, truths, num_classes, width):
    before, gains = naive_iou(guesses, truths, num_classes), {}
    for kind in KINDS:
        mended = []
        for guess, truth in zip(guesses, truths, strict=True):
            radius, fixed = max(1, round(width * max(truth.shape))), guess.copy()
            for y, x in zip(*np.nonzero(guess != truth), strict=True):
                wrong = truth[y, x] != 255 and guess[y, x] != 255
                if wrong and kind_of(guess, truth, y, x, radius) == kind:
                    fixed[y, x] = truth[y, x]
            mended.append(fixed)
        gains[kind] = naive_iou(mended, truths, num_classes) - before
    return gains


def scenes(seed, count, num_classes):
    """Label images of rectangles with ignored pixels, and guesses with errors of all kinds."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        height, width = random.integers(6, 20, size=2)
        truth, guess = np.zeros((2, height, width), np.uint8)
        for image in (truth, guess):
            for _ in range(3):
                y, x = random.integers(0, height), random.integers(0, width)
                image[y : y + random.integers(1, 9), x : x + random.integers(1, 9)] = (
                    random.integers(0, num_classes + 1)
                )
        guess = np.where(random.random(truth.shape) < 0.6, truth, guess)
        truth[random.random(truth.shape) < 0.1] = 255
        guess[random.random(truth.shape) < 0.05] = 255
        yield guess, truth


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    num_classes=st.integers(1, 4),
    width=st.sampled_from((0.01, 0.1, 0.3)),
)
def test_equals_the_naive_count(seed, num_classes, width):
    images = list(scenes(seed, 3, num_classes))
    breakdown = ErrorBreakdown(num_classes, width=width)
    for guess, truth in images:
        breakdown.update(guess, truth)
    shares = breakdown.compute()
    expected = naive_gains(*zip(*images, strict=True), num_classes, width)
    assert tuple(shares.gains) == KINDS
    for kind in KINDS:
        np.testing.assert_allclose(shares.gains[kind], expected[kind], atol=1e-12)
        known = expected[kind][~np.isnan(expected[kind])]
        assert shares.mean(kind) == pytest.approx(known.mean())


def test_hand_made_case():
    truth = torch.zeros(16, 16, dtype=torch.long)
    truth[:, 8:] = 1
    guess = truth.clone()
    guess[0, 7] = 1  # beside the object
    guess[0, 0:2] = 2  # far from it: another object where there is none
    guess[0, 12:15] = 0
    guess[1, 12:16] = 2
    breakdown = ErrorBreakdown(3, ["cat", "cow", "dog"], width=1 / 16)
    breakdown.update(guess, truth)
    shares = breakdown.compute()
    # Background: TP 125, FP 3, FN 3; cat: TP 121, FP 1, FN 7; cow: FP 6; no dog.
    before = (125 / 131, 121 / 129, 0)
    assert shares.classes == ("background", "cat", "cow", "dog")
    for kind, after in (
        ("boundary", (126 / 131, 121 / 128, 0)),
        ("missed", (125 / 128, 124 / 129, 0)),
        ("spill", (127 / 131, 121 / 129, 0)),
        ("confusion", (125 / 131, 125 / 129, 0)),
    ):
        gains = [a - b for a, b in zip(after, before, strict=True)]
        assert shares.gains[kind][:3] == pytest.approx(gains), kind
        assert math.isnan(shares.gains[kind][3])
        assert shares.mean(kind) == pytest.approx(sum(gains) / 3)
    found = shares.to_dict()
    assert found["per_class"]["dog"] == dict.fromkeys(KINDS)
    assert found["per_class"]["cat"]["missed"] == pytest.approx(3 / 129)
    assert found["mean"]["spill"] == pytest.approx(2 / 131 / 3)
    json.dumps(found, allow_nan=False)


def test_ignored_pixels_are_no_other_label():
    truth = np.zeros((9, 9), np.uint8)
    truth[4] = 255
    guess = np.zeros_like(truth)
    guess[3, 3] = 1
    breakdown = ErrorBreakdown(1, width=0.1)
    breakdown.update(guess, truth)
    gains = breakdown.compute().gains
    assert gains["boundary"] == (0, 0) and gains["spill"][0] == pytest.approx(1 / 72)


def test_counts_what_the_confusion_matrix_counts_and_merges():
    images = list(scenes(0, 4, 3))
    matrix, whole, left, right = ConfusionMatrix(3), *(ErrorBreakdown(3) for _ in range(3))
    for number, (guess, truth) in enumerate(images):
        matrix.update(guess, truth)
        whole.update(guess, torch.from_numpy(truth))
        (left, right)[number % 2].update(torch.from_numpy(guess).long(), truth)
    left.merge(right)
    assert torch.equal(whole.boundary.counts + whole.inside.counts, matrix.counts)
    assert left.compute() == whole.compute()
    assert repr(left) == "ErrorBreakdown(3, width=0.03125, images=4)"


def test_nothing_is_nan():
    shares = ErrorBreakdown(2).compute()
    assert math.isnan(shares.mean("spill")) and shares.to_dict()["mean"]["spill"] is None


@pytest.mark.parametrize(
    ("guess", "truth", "message"),
    [
        (torch.zeros(2, 3).long(), torch.zeros(3, 2).long(), r"image 'a'.*\(2, 3\).*\(3, 2\)"),
        (torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long(), r"image 'a'.*one label image"),
        (torch.full((2, 2), 4), torch.zeros(2, 2).long(), "prediction of image 'a'.*label 4"),
        (torch.zeros(2, 2).long(), torch.full((2, 2), 200), "truth of image 'a'.*label 200"),
        (torch.zeros(2, 2).long(), torch.zeros(2, 2), "truth of image 'a'.*integer"),
    ],
)
def test_bad_labels_are_not_counted(guess, truth, message):
    breakdown = ErrorBreakdown(3)
    with pytest.raises(InputError, match=message):
        breakdown.update(guess, truth, image_id="a")
    assert breakdown.boundary.counts.sum() == breakdown.inside.counts.sum() == 0


@pytest.mark.parametrize("width", [0, 1, -0.1])
def test_bad_width(width):
    with pytest.raises(InputError, match=f"width={width}"):
        ErrorBreakdown(3, width=width)
