import copy
from pathlib import Path

import pytest
import torch

from pgnn_geo.boxes import ImageBoxes, PhotoBoxes
from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger


class Drawn:
    """Three boxes in every photo but the first; the classes 1 and 2 in turn."""

    ledger = SupervisionLedger(boxes="drawn")

    def __call__(self, image_id: str) -> ImageBoxes:
        if image_id.endswith("00000"):
            return ImageBoxes.empty()
        boxes = torch.tensor([[0.0, 0, 32, 32], [16, 8, 64, 40], [40, 40, 48, 60]])
        return ImageBoxes(boxes, torch.tensor([1, 2, 1]), torch.tensor([0.2, 0.9, 0.5]))


@pytest.fixture
def shapes(shapes_root: Path) -> Shapes:
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    photos.tags = torch.zeros(20, 5)
    photos.tags[:, 0] = 1
    photos.tags[3, 1] = 1
    return photos


def test_boxes_of_tagged_classes_the_best_first(shapes: Shapes) -> None:
    boxes = PhotoBoxes(Drawn(), shapes)
    assert len(boxes) == 20 and boxes.counts.tolist() == [0, 2, 2, 3, *[2] * 16]
    assert boxes.ledger.boxes == "drawn" and "20 photos, 39 boxes" in repr(boxes)
    assert boxes.boxes[1].scores.tolist() == pytest.approx([0.5, 0.2])
    assert boxes.boxes[3].classes.tolist() == [2, 1, 1]


def test_in_feature_pixels(shapes: Shapes) -> None:
    boxes = PhotoBoxes(Drawn(), shapes)
    shown, labels = boxes.shown(torch.tensor([3, 0, 3]), (8, 16))
    assert shown[0].tolist() == [[4, 1, 16, 5], [10, 5, 12, 7.5], [0, 0, 8, 4]]
    assert labels[0].tolist() == [2, 1, 1] and len(shown) == 3
    assert shown[1].shape == (0, 4) and labels[1].shape == (0,) and torch.equal(*shown[::2])

    # The right half, mirrored; the last box is not in it.
    half, flip = torch.tensor([[32.0, 0, 64, 64]]), torch.tensor([True])
    shown, labels = boxes.shown(torch.tensor([3]), (8, 8), half, flip)
    assert shown[0].tolist() == [[0, 1, 8, 5], [4, 5, 6, 7.5]] and labels[0].tolist() == [2, 1]


def test_without_tags_there_are_no_boxes(shapes: Shapes) -> None:
    untagged = copy.copy(shapes)
    untagged.tags = None
    with pytest.raises(InputError, match="need image tags"):
        PhotoBoxes(Drawn(), untagged)
