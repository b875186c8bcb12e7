import json

import pytest
import torch
from PIL import Image

from pgnn_geo.boxes.auxiliary import AuxiliaryBoxes
from pgnn_geo.errors import InputError


@pytest.fixture
def coco(tmp_path):
    """Two photos with boxes (one is too thin to matter), one without, one with a crowd only."""
    (tmp_path / "photos").mkdir()
    for number in range(1, 5):
        Image.new("RGB", (60, 40)).save(tmp_path / "photos" / f"{number}.jpg")
    document = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in range(1, 5)
        ],
        "annotations": [
            {"id": 1, "image_id": 2, "category_id": 7, "bbox": [10, 5, 20, 30], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 9, "bbox": [0, 0, 60.3, 40]},
            {"id": 3, "image_id": 2, "category_id": 9, "bbox": [1, 2, 3, 4]},
            {"id": 5, "image_id": 1, "category_id": 9, "bbox": [1, 2, 0.5, 4]},
            {"id": 4, "image_id": 4, "category_id": 9, "bbox": [1, 2, 0, 4], "iscrowd": 1},
        ],
    }

    def write(**changes):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps({**document, **changes}))
        return path, tmp_path / "photos"

    write.document = document
    return write


def test_boxes_of_each_photo(coco):
    dataset = AuxiliaryBoxes(*coco())
    assert dataset.image_ids == ["2", "1"] and dataset.name == "instances"
    assert dataset.boxes[0].tolist() == [[10, 5, 30, 35], [1, 2, 4, 6]]
    assert dataset.boxes[1].tolist() == [[0, 0, 60, 40]]  # files round; cut at the border
    assert dataset.check() == [] and dataset.photo_size(0) == (40, 60)
    assert dataset[1]["image"].shape == torch.Size([3, 40, 60])


def test_bad_boxes_are_one_error_with_their_count(coco):
    rows = coco.document["annotations"]
    for change, words in (
        ({"bbox": [10, 5, -2, 30]}, "without area: annotation 1 of image 2"),
        ({"bbox": [50, 5, 20, 30]}, "outside the photo"),
        ({"image_id": 9}, "the data set does not have"),
        ({"bbox": [1, 2, 3, float("nan")]}, "not numbers"),
        ({"bbox": [1, 2, 3]}, "four numbers"),
        ({"bbox": "abcd"}, "four numbers"),
    ):
        with pytest.raises(InputError, match=words):
            AuxiliaryBoxes(*coco(annotations=[{**rows[0], **change}, *rows[1:]]))
    with pytest.raises(InputError, match="1 annotations lack 'image_id' or 'bbox', such as 6"):
        AuxiliaryBoxes(*coco(annotations=[*rows, {"id": 6}]))


def test_files_that_are_something_else(coco, tmp_path):
    for changes, words in (
        ({"annotations": []}, "has no boxes"),
        ({"images": [{"id": 1}]}, "no COCO file"),
        ({"images": 5}, "no COCO file"),
    ):
        with pytest.raises(InputError, match=words):
            AuxiliaryBoxes(*coco(**changes))
    (tmp_path / "torn.json").write_text('{"images": [')
    with pytest.raises(InputError, match="no COCO file"):
        AuxiliaryBoxes(tmp_path / "torn.json", tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        AuxiliaryBoxes(tmp_path / "none.json", tmp_path)
    path, photos = coco()
    (photos / "2.jpg").unlink()
    assert "2.jpg" in AuxiliaryBoxes(path, photos).check()[0]
