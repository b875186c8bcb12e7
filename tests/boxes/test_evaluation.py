import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pgnn_geo.boxes import (
    ImageBoxes,
    average_precision,
    boxes_of_mask,
    corloc,
    evaluate_boxes,
    proposal_recall,
    true_boxes,
)
from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger

Row = tuple[float, float, float, float, int, float]


def image_boxes(*rows: Row) -> ImageBoxes:
    """Rows x1, y1, x2, y2, class, score."""
    table = torch.tensor(rows).float().view(-1, 6)
    return ImageBoxes(table[:, :4], table[:, 4].long(), table[:, 5])


TRUTH = {
    "a": image_boxes((0, 0, 10, 10, 1, 1), (20, 0, 40, 20, 1, 1), (0, 20, 10, 40, 2, 1)),
    "b": image_boxes((0, 0, 10, 10, 1, 1)),
    "c": image_boxes((0, 0, 10, 10, 2, 1)),
}
PREDICTED = {
    # IoU 0.5 with the first box of class 1, which is enough; the box of class 2 is shifted.
    "a": image_boxes((0, 0, 10, 5, 1, 0.9), (20, 0, 40, 20, 1, 0.3), (5, 20, 15, 40, 2, 0.8)),
    # The best box is wrong, the second best would be right.
    "b": image_boxes((50, 50, 60, 60, 1, 0.7), (0, 0, 10, 10, 1, 0.6)),
    "c": image_boxes((0, 0, 10, 9, 2, 0.4), (0, 0, 10, 10, 1, 0.95)),
}


class Table:
    ledger = SupervisionLedger(tags="csv")

    def __init__(self, boxes: Mapping[str, ImageBoxes]) -> None:
        self.boxes = boxes

    def __call__(self, image_id: str) -> ImageBoxes:
        return self.boxes[image_id]


def test_corloc_by_hand() -> None:
    assert corloc(PREDICTED, TRUTH, 3)[:2] == (0.5, 0.5)
    assert math.isnan(corloc(PREDICTED, TRUTH, 3)[2])
    assert corloc(PREDICTED, TRUTH, 2, iou=0.51) == (0.0, 0.5)
    assert corloc({}, TRUTH, 2) == (0.0, 0.0)
    assert corloc(TRUTH, TRUTH, 2) == (1.0, 1.0)
    assert all(map(math.isnan, corloc(PREDICTED, {}, 2)))


def test_average_precision_by_hand() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    # Class 1, best first: wrong (c), right (a), wrong (b), right (b), right (a); 3 true boxes.
    # Precision at recall 1/3, 2/3, 1 is 1/2, 2/4, 3/5, so 3/5 wherever it is read.
    # Class 2: wrong (a), right (c), 2 true boxes: 1/2 up to recall 0.5, 51 of 101 places.
    found = average_precision(PREDICTED, TRUTH, 3)
    assert found[:2] == pytest.approx((0.6, 0.5 * 51 / 101)) and math.isnan(found[2])
    assert average_precision(TRUTH, TRUTH, 2) == (1.0, 1.0)
    assert average_precision({}, TRUTH, 2) == (0.0, 0.0)
    assert all(map(math.isnan, average_precision({}, {}, 2)))
    only = {"b": TRUTH["b"]}
    assert average_precision(only, only, 1) == (1.0,)


def test_scores_of_a_source() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    scores = evaluate_boxes(Table(PREDICTED), TRUTH, ["cat", "dog", "cow"])
    assert scores.corloc == pytest.approx(corloc(PREDICTED, TRUTH, 3), nan_ok=True)
    assert scores.mean_corloc == pytest.approx(0.5) and scores.images == 3
    assert scores.mean_average_precision == pytest.approx((0.6 + 0.5 * 51 / 101) / 2)
    assert scores.to_dict()["per_class"]["cow"] == {"corloc": None, "ap": None}
    assert scores.to_dict()["corloc"] == pytest.approx(0.5)


def test_average_precision_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.detection", None)
    with pytest.raises(InputError, match=r"pgnn-geo\[detect\]"):
        average_precision({}, TRUTH, 2)


def test_true_boxes_are_those_of_components() -> None:
    mask = torch.zeros(50, 60, dtype=torch.uint8)
    mask[0:12, 0:10] = 2
    mask[12:14, 10:60] = 2  # touches it at a corner
    mask[20:40, 5:25] = 1
    mask[20:40, 14:16] = 255  # parts the object in two
    mask[45:49, 0:4] = 3  # a speck
    boxes = boxes_of_mask(mask)
    assert boxes.classes.tolist() == [1, 1, 2]
    assert boxes.boxes.tolist() == [[5, 20, 14, 40], [16, 20, 25, 40], [0, 0, 60, 14]]
    assert boxes.scores.tolist() == [1, 1, 1]
    assert boxes_of_mask(mask, min_pixels=16).classes.tolist() == [1, 1, 2, 3]
    assert boxes_of_mask(mask, min_pixels=17).classes.tolist() == [1, 1, 2]
    assert len(boxes_of_mask(torch.full((4, 4), 255))) == 0
    with pytest.raises(InputError, match="want integers"):
        boxes_of_mask(torch.zeros(3, 3))


def test_true_boxes_of_a_data_set(shapes_root: Path) -> None:
    dataset = Shapes(shapes_root, "train", num_images=(20, 10), size=64, with_masks=True)
    truth = true_boxes(dataset.subset([0, 3]), min_pixels=1)
    assert list(truth) == [dataset.image_ids[0], dataset.image_ids[3]]
    mask = dataset[3]["mask"]
    y, x = ((mask > 0) & (mask < 255)).nonzero(as_tuple=True)
    corners = truth[dataset.image_ids[3]].boxes
    assert corners[:, :2].amin(0).tolist() == [x.min(), y.min()]
    assert corners[:, 2:].amax(0).tolist() == [x.max() + 1, y.max() + 1]
    with pytest.raises(InputError, match="with_masks=True"):
        true_boxes(Shapes(shapes_root, "train", num_images=(20, 10), size=64))


def test_recall_of_proposals() -> None:
    truth = [TRUTH["a"].boxes, TRUTH["b"].boxes]
    assert proposal_recall(truth, truth) == 1
    assert proposal_recall([truth[0][:2], torch.zeros(0, 4)], truth) == pytest.approx(0.5)
    shifted = [boxes + torch.tensor([0, 4, 0, 4]) for boxes in truth]  # IoU 6/14, 2/3, 2/3, 6/14
    assert proposal_recall(shifted, truth) == pytest.approx(0.5)
    assert math.isnan(proposal_recall([], []))
