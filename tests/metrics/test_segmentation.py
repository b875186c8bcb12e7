import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import (
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from pgnn_geo.errors import InputError
from pgnn_geo.metrics import BackgroundSweep, ConfusionMatrix


def test_hand_made_case():
    truth = torch.tensor([[0, 0, 0, 1], [1, 1, 2, 255]])
    guess = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 2]])
    matrix = ConfusionMatrix(3, classes=["cat", "cow", "dog"])
    matrix.update(guess, truth)
    scores = matrix.compute()
    # background: TP 2, FP 1, FN 1; cat: TP 2, FP 2, FN 1; cow: FN 1 alone; dog: nowhere.
    assert scores.iou[:3] == pytest.approx((2 / 4, 2 / 5, 0))
    assert scores.precision[:3] == pytest.approx((2 / 3, 2 / 4, 0))
    assert scores.recall[:3] == pytest.approx((2 / 3, 2 / 3, 0))
    assert all(math.isnan(row[3]) for row in (scores.iou, scores.precision, scores.recall))
    assert scores.miou == pytest.approx((2 / 4 + 2 / 5 + 0) / 3)
    assert scores.means(background=False) == pytest.approx(
        {"miou": 0.2, "precision": 0.25, "recall": 1 / 3}
    )
    result = scores.to_dict()
    assert result["foreground"] == scores.means(background=False)
    headline = {name: result[name] for name in ("miou", "precision", "recall")}
    assert headline == {**scores.means(background=False), "miou": scores.miou}
    assert result["with_background"]["miou"] == pytest.approx(0.3)
    assert result["with_background"]["recall"] == pytest.approx(4 / 9)
    assert result["per_class"]["cat"]["precision"] == pytest.approx(0.5)
    assert result["per_class"]["dog"] == {"iou": None, "precision": None, "recall": None}
    assert result["coverage"] == 1 and result["images"] == 1
    json.dumps(result, allow_nan=False)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), num_classes=st.integers(1, 20), used=st.integers(1, 21))
def test_equals_torchmetrics(seed, num_classes, used):
    generator = torch.Generator().manual_seed(seed)
    used = min(used, num_classes + 1)  # the remaining classes occur nowhere
    truth = torch.randint(used, (3, 9, 7), generator=generator)
    guess = torch.randint(used, (3, 9, 7), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    matrix = ConfusionMatrix(num_classes)
    kwargs = dict(num_classes=num_classes + 1, ignore_index=255)
    expected = {
        "miou": MulticlassJaccardIndex(average="macro", **kwargs),
        "precision": MulticlassPrecision(average="macro", **kwargs),
        "recall": MulticlassRecall(average="macro", **kwargs),
    }
    for one_guess, one_truth in zip(guess, truth, strict=True):
        matrix.update(one_guess, one_truth)
        for metric in expected.values():
            metric.update(one_guess[None], one_truth[None])
    means = matrix.compute().means()
    for name, metric in expected.items():
        assert means[name] == pytest.approx(metric.compute().item(), abs=1e-6)


def test_streams_merges_and_takes_arrays():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(4, (4, 8, 8), generator=generator).byte()
    guess = torch.randint(4, (4, 8, 8), generator=generator).byte()
    whole, left, right = (ConfusionMatrix(3) for _ in range(3))
    whole.update(guess, truth)
    left.update(guess[0].numpy(), truth[0].numpy())
    for index in (1, 2, 3):
        right.update(guess[index].long(), truth[index].int())
    left.merge(right)
    left.all_reduce()
    assert left.images == whole.images == 4
    assert torch.equal(left.counts, whole.counts)
    assert left.compute() == whole.compute()


def test_abstaining_lowers_coverage_only():
    matrix = ConfusionMatrix(1)
    matrix.update(np.array([[1, 255, 255, 0]]), np.array([[1, 1, 255, 0]]))
    scores = matrix.compute()
    assert scores.iou == (1, 1)
    assert scores.coverage == pytest.approx(2 / 3)


def test_empty_is_nan():
    scores = ConfusionMatrix(2).compute()
    assert math.isnan(scores.miou) and scores.to_dict()["miou"] is None


@pytest.mark.parametrize(
    ("guess", "truth", "message"),
    [
        (torch.zeros(2, 3).long(), torch.zeros(3, 2).long(), r"image 'a'.*\(2, 3\).*\(3, 2\)"),
        (torch.full((2, 2), 4), torch.zeros(2, 2).long(), r"prediction of image 'a'.*label 4"),
        (torch.zeros(2, 2).long(), torch.full((2, 2), 200), r"truth of image 'a'.*label 200"),
        (torch.full((2, 2), -1), torch.zeros(2, 2).long(), r"prediction.*-1"),
        (torch.zeros(2, 2), torch.zeros(2, 2).long(), "integer"),
    ],
)
def test_bad_labels(guess, truth, message):
    matrix = ConfusionMatrix(3)
    with pytest.raises(InputError, match=message):
        matrix.update(guess, truth, image_id="a")
    assert matrix.counts.sum() == 0


def test_bad_classes():
    with pytest.raises(InputError, match="foreground names"):
        ConfusionMatrix(2, classes=["background", "cat"])
    with pytest.raises(InputError, match=r"1\.\.254"):
        ConfusionMatrix(255)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), num_classes=st.integers(1, 5))
def test_sweep_equals_one_matrix_per_threshold(seed, num_classes):
    generator = torch.Generator().manual_seed(seed)
    thresholds = [0.0, 0.25, 0.5, 1.0]
    sweep = BackgroundSweep(num_classes, thresholds)
    matrices = [ConfusionMatrix(num_classes) for _ in thresholds]
    for _ in range(3):
        # Multiples of 1/8, so that scores also meet the thresholds exactly.
        attention = torch.randint(9, (num_classes, 6, 5), generator=generator) / 8
        truth = torch.randint(num_classes + 1, (6, 5), generator=generator)
        truth[0] = 255
        sweep.update(attention, truth)
        for threshold, matrix in zip(thresholds, matrices, strict=True):
            background = torch.full((1, 6, 5), threshold)
            matrix.update(torch.cat([background, attention]).argmax(0), truth)
    expected = [matrix.compute().to_dict() for matrix in matrices]
    assert [scores.to_dict() for scores in sweep.compute()] == expected
    threshold, best = sweep.best()
    assert best.miou == max(scores.miou for scores in sweep.compute())
    assert threshold in thresholds


def test_sweep_rejects():
    with pytest.raises(InputError, match="ascending"):
        BackgroundSweep(2, [0.5, 0.1])
    with pytest.raises(InputError, match="size of the mask"):
        BackgroundSweep(2, [0.5]).update(torch.rand(2, 4, 4), torch.zeros(8, 8).long())
    with pytest.raises(InputError, match="label 3"):
        BackgroundSweep(2, [0.5]).update(torch.rand(2, 4, 4), torch.full((4, 4), 3))


def _reduce(rank, path, queue):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    matrix = ConfusionMatrix(1)
    matrix.update(torch.full((2, 2), rank), torch.ones(2, 2).long())
    matrix.all_reduce()
    queue.put((matrix.counts.tolist(), matrix.images))
    dist.destroy_process_group()


@pytest.mark.slow
def test_all_reduce_over_two_ranks(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = [(rank, tmp_path / "store", queue) for rank in range(2)]
    ranks = [context.Process(target=_reduce, args=argument) for argument in arguments]
    for process in ranks:
        process.start()
    answers = [queue.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join()
    assert answers == [([[0, 0, 0], [4, 4, 0]], 2)] * 2
