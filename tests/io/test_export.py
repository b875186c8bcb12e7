import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pgnn_geo.errors import InputError
from pgnn_geo.io import export
from pgnn_geo.io.export import read_coco, write_coco, write_voc_submission
from pgnn_geo.io.masks import load_mask, voc_palette

CLASSES = ["cat", "cow", "dog"]


def draw(seed, size, codes=(0, 1, 2, 3, 255)):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(codes)[torch.randint(len(codes), size, generator=generator)]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), height=st.integers(1, 9), width=st.integers(1, 9))
def test_coco_round_trip(tmp_path_factory, seed, height, width):
    pytest.importorskip("pycocotools")
    path = tmp_path_factory.mktemp("coco") / "labels.json"
    masks = {
        "2007_000032": draw(seed, (height, width)),
        "b": draw(seed + 1, (width, height)).byte(),
        "empty": torch.zeros(3, 2).long(),
    }
    write_coco(path, masks.items(), CLASSES)
    result = dict(read_coco(path, CLASSES))
    assert list(result) == list(masks)
    for image_id, mask in masks.items():
        assert result[image_id].dtype == torch.uint8
        assert torch.equal(result[image_id].long(), mask.long())


def test_pycocotools_reads_the_file(tmp_path, capsys):
    coco_api = pytest.importorskip("pycocotools.coco")
    mask = torch.zeros(6, 8).long()
    mask[1:4, 2:7] = 2
    mask[5, 0] = 255
    write_coco(tmp_path / "a.json", [("a", mask)], CLASSES, suffix=".png")
    coco = coco_api.COCO(str(tmp_path / "a.json"))
    assert coco.getCatIds() == [1, 2, 3, 255]
    assert coco.loadCats(2) == [{"id": 2, "name": "cow"}]
    assert coco.loadImgs(1) == [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}]
    cow, crowd = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert cow["bbox"] == [2, 1, 5, 3] and cow["area"] == 15 and cow["iscrowd"] == 0
    assert crowd["iscrowd"] == 1 and crowd["category_id"] == 255
    assert np.array_equal(coco.annToMask(cow), (mask == 2).numpy())
    capsys.readouterr()
    list(read_coco(tmp_path / "a.json", CLASSES))
    assert capsys.readouterr().out == ""


def test_polygons_and_other_numbers_of_another_tool(tmp_path):
    pytest.importorskip("pycocotools")
    big = {"id": 1, "image_id": 7, "category_id": 40, "area": 64, "iscrowd": 0}
    big["segmentation"] = [[0, 0, 8, 0, 8, 8, 0, 8]]
    small = {**big, "id": 2, "category_id": 41, "area": 4}
    small["segmentation"] = [[2, 2, 4, 2, 4, 4, 2, 4]]
    document = {
        "images": [{"id": 7, "file_name": "photos/x.y.jpg", "width": 8, "height": 10}],
        "annotations": [small, big],
        "categories": [{"id": 40, "name": "dog"}, {"id": 41, "name": "cat"}],
    }
    path = tmp_path / "tool.json"
    path.write_text(json.dumps(document))
    ((image_id, mask),) = read_coco(path, CLASSES)
    expected = torch.zeros(10, 8).byte()
    expected[:8] = 3
    expected[2:4, 2:4] = 1
    assert image_id == "x.y" and torch.equal(mask, expected)
    with pytest.raises(InputError, match=r"annotation 1 .* 'dog'"):
        list(read_coco(path, ["cat"]))


def test_coco_records_that_lack_something(tmp_path):
    """Areas are those of the pixels; what has no pixels is one error that names it."""
    pytest.importorskip("pycocotools")
    square = {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[1, 1, 7, 1, 7, 7, 1, 7]]}
    inner = {**square, "id": 2, "category_id": 3, "segmentation": [[3, 3, 5, 3, 5, 5, 3, 5]]}
    counts = {**square, "id": 3, "segmentation": {"size": [8, 8], "counts": [60, 4]}}
    path = tmp_path / "tool.json"

    def read(*annotations, **image):
        entry = {"id": 7, "file_name": "a.jpg", "width": 8, "height": 8, **image}
        categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)]
        document = {"images": [entry], "annotations": annotations, "categories": categories}
        path.write_text(json.dumps(document))
        ((_, mask),) = read_coco(path, CLASSES)
        return mask

    expected = torch.zeros(8, 8).byte()
    expected[1:7, 1:7] = 1
    expected[3:5, 3:5] = 3
    expected[4:, 7] = 1
    for order in ((square, inner, counts), (inner, counts, square)):
        assert torch.equal(read(*order), expected)
    for lacks in ({"segmentation": []}, {"segmentation": None}, {"segmentation": {}}):
        with pytest.raises(InputError, match=r"annotation 1 of .*tool\.json' has no segmentation"):
            read({**square, **lacks, "bbox": [1, 1, 6, 6], "area": 36})
    with pytest.raises(InputError, match=r"annotation 1 .* has no segmentation"):
        read({name: square[name] for name in ("id", "image_id", "category_id")})
    with pytest.raises(InputError, match=r"annotation 1 .* neither polygons"):
        read({**square, "segmentation": [[1, 2]]})
    with pytest.raises(InputError, match=r"COCO JSON: KeyError\('category_id'\).*annotations with"):
        read({"id": 1, "image_id": 7, "segmentation": square["segmentation"]})
    with pytest.raises(InputError, match=r"COCO JSON.*height"):
        read(square, height=None)


def test_coco_errors(tmp_path, monkeypatch):
    pytest.importorskip("pycocotools")
    path, mask = tmp_path / "a.json", torch.zeros(2, 2).long()
    for masks, message in (
        ([("a", mask), ("a", mask)], "'a' comes twice"),
        ([("b", mask + 4)], "'b' holds label 4"),
        ([("c", mask - 1)], "'c' holds label -1"),
        ([("d", mask.float())], "'d' must be integers"),
    ):
        with pytest.raises(InputError, match=message):
            write_coco(path, masks, CLASSES)
    assert list(tmp_path.iterdir()) == []
    for text in ("not json", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"a\.json"):
            list(read_coco(path, CLASSES))
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pgnn-geo\[export\]"):
        write_coco(path, [], CLASSES)


def test_voc_submission(tmp_path):
    mask = draw(0, (5, 7), codes=(0, 1, 2))
    folder = write_voc_submission(tmp_path, [("2008_000006", mask)], ["cat", "person"])
    assert folder == tmp_path / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls"
    path = folder / "2008_000006.png"
    assert [path] == list(folder.iterdir())
    expected = torch.tensor([0, 8, 15])[mask]  # cat and person in VOC's order
    assert torch.equal(load_mask(path).long(), expected)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image.convert("RGB")), voc_palette()[expected.numpy()])
    with pytest.raises(InputError, match="'x' holds 255"):
        write_voc_submission(tmp_path, [("x", torch.full((2, 2), 255))])
    with pytest.raises(InputError, match="fish"):
        write_voc_submission(tmp_path, [], ["fish"])
