from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from pgnn_geo.boxes import AttentionBoxConfig, AttentionBoxes, attention_boxes
from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger

SIZE = (60, 120)  # of the photo; the maps below have half of its pixels per side
EXACT = AttentionBoxConfig(side=60, min_area=0)


def two_blobs() -> Tensor:
    """A strong and a weaker blob in a map of 30 x 60 positions."""
    attention = torch.zeros(30, 60)
    attention[5:15, 10:20] = 1.0
    attention[18:28, 40:56] = 0.55
    return attention


def test_each_blob_is_a_box() -> None:
    boxes = attention_boxes(two_blobs()[None], torch.tensor([4]), SIZE, EXACT)
    assert boxes.boxes.tolist() == [[20, 10, 40, 30], [80, 36, 112, 56]]
    assert boxes.classes.tolist() == [4, 4]
    # Soft IoU of box and map by hand: 100 and 160 positions, of weight 1 and sqrt(0.55).
    weak = 160 * 0.55**0.5
    assert boxes.scores.tolist() == pytest.approx([100 / (100 + weak), weak / (160 + 100)])


@pytest.mark.parametrize("score, expected", [("mean", [1.0, 0.55]), ("max", [1.0, 0.55])])
def test_scores_of_a_component(score: str, expected: list[float]) -> None:
    config = AttentionBoxConfig(side=60, score=score)
    boxes = attention_boxes(two_blobs()[None], torch.tensor([1]), SIZE, config)
    assert boxes.scores.tolist() == pytest.approx(expected)
    assert boxes.boxes[0].tolist() == [20, 10, 40, 30]


def test_levels_give_nested_boxes_and_duplicates_are_dropped() -> None:
    pyramid = torch.zeros(40, 40)
    for ring, value in ((0, 0.25), (8, 0.55), (14, 1.0)):
        pyramid[ring : 40 - ring, ring : 40 - ring] = value
    config = AttentionBoxConfig(side=40, nms=0.9)
    boxes = attention_boxes(pyramid[None], torch.tensor([1]), (40, 40), config)
    found = {tuple(row) for row in boxes.boxes.tolist()}
    assert found == {(0, 0, 40, 40), (8, 8, 32, 32), (14, 14, 26, 26)} and len(boxes) == 3
    assert (boxes.scores.diff() <= 0).all()
    fewer = attention_boxes(
        pyramid[None], torch.tensor([1]), (40, 40), AttentionBoxConfig(side=40, nms=0.2)
    )
    assert len(fewer) == 2  # IoU 0.36, 0.25, 0.09
    overlap = box_iou(fewer.boxes, fewer.boxes).fill_diagonal_(0)
    assert overlap.max() <= 0.2


def test_boxes_of_each_class_are_its_own() -> None:
    maps = torch.stack([two_blobs(), two_blobs().flip(1)])
    both = attention_boxes(maps, torch.tensor([2, 5]), SIZE, EXACT)
    for label, attention in ((2, maps[0]), (5, maps[1])):
        alone = attention_boxes(attention[None], torch.tensor([label]), SIZE, EXACT)
        own = both.pick(both.classes == label)
        assert torch.equal(own.boxes, alone.boxes) and torch.equal(own.scores, alone.scores)


def test_scale_of_a_map_does_not_matter_and_specks_do_not_count() -> None:
    attention = two_blobs()
    attention[0, 0] = 0.9
    config = AttentionBoxConfig(side=60, min_area=0.01)
    boxes = attention_boxes(7 * attention[None], torch.tensor([1]), SIZE, config)
    assert len(boxes) == 2
    wanted = attention_boxes(attention[None], torch.tensor([1]), SIZE, config)
    assert torch.equal(boxes.boxes, wanted.boxes)


def test_maps_with_nothing_in_them() -> None:
    for maps in (torch.zeros(2, 8, 8), torch.zeros(0, 8, 8), -torch.ones(1, 8, 8)):
        boxes = attention_boxes(maps, torch.arange(1, len(maps) + 1), SIZE)
        assert len(boxes) == 0
    assert len(attention_boxes(torch.ones(1, 1, 1), torch.tensor([1]), (1, 1))) == 1


def test_a_data_set(shapes_root: Path) -> None:
    dataset = Shapes(shapes_root, "train", num_images=(20, 10), size=64, with_masks=True)
    assert dataset.tags is not None
    maps = []
    for i, tags in enumerate(dataset.tags):
        mask = dataset[i]["mask"].as_subclass(torch.Tensor)
        maps.append(torch.stack([(mask == label + 1).float() for label in tags.nonzero()[:, 0]]))
    ledger = SupervisionLedger(tags="csv", weights="none")
    source = AttentionBoxes(maps, dataset, ledger, AttentionBoxConfig(side=64))
    for image_id, tags in zip(dataset.image_ids, dataset.tags, strict=True):
        boxes = source(image_id)
        assert boxes.classes.unique().tolist() == (tags.nonzero()[:, 0] + 1).tolist()
        assert (boxes.boxes >= 0).all() and (boxes.boxes <= 64).all()
    assert source.ledger == ledger and "photos=20" in repr(source)
    assert AttentionBoxes(maps, dataset).ledger.to_list() == ["tags: image tags"]
    with pytest.raises(InputError, match="no attention maps of image 'x'"):
        source("x")
    with pytest.raises(InputError, match="of 19 photos"):
        AttentionBoxes(maps[1:], dataset)
    untagged = dataset.subset([0, 1])
    untagged.tags = None
    with pytest.raises(InputError, match="need image tags"):
        AttentionBoxes(maps[:2], untagged)


def test_errors() -> None:
    one = torch.tensor([1])
    with pytest.raises(InputError, match="want \\[k, h, w\\]"):
        attention_boxes(torch.zeros(2, 8, 8), one, SIZE)
    with pytest.raises(InputError, match="not numbers"):
        attention_boxes(torch.full((1, 8, 8), torch.nan), one, SIZE)
    for name, value in (("levels", ()), ("levels", (1.0,)), ("score", "sum"), ("side", 0)):
        with pytest.raises(InputError, match=name):
            AttentionBoxConfig(**{name: value})
