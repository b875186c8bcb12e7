import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnn_geo.boxes import BoxFile, ImageBoxes, cached_boxes, write_boxes
from pgnn_geo.datasets import Shapes, TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger

LEDGER = SupervisionLedger(tags="csv", weights="none")


@pytest.fixture(scope="module")
def dataset(shapes_root: Path) -> Shapes:
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64)


def image_boxes(seed: int, count: int, side: float = 64) -> ImageBoxes:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(count, 2, generator=generator) * (side - 2)
    end = start + 1 + torch.rand(count, 2, generator=generator) * (side - 1 - start)
    labels = torch.randint(1, 6, (count,), generator=generator)
    scores = torch.rand(count, generator=generator)
    return ImageBoxes(torch.cat([start, end.clamp(max=side)], dim=1), labels, scores)


def same(a: ImageBoxes, b: ImageBoxes) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("boxes", "classes", "scores"))


def entry(image_id: object, **changes: Any) -> dict[str, Any]:
    return {
        **{"image_id": image_id, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5},
        **changes,
    }


def write(path: Path, *entries: object) -> Path:
    path.write_text(json.dumps(entries))
    return path


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 4), min_size=20, max_size=20))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, dataset: Shapes, seed: int, counts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("boxes") / "boxes.json"
    boxes = {i: image_boxes(seed + k, counts[k]) for k, i in enumerate(dataset.image_ids)}
    write_boxes(path, boxes, dataset.classes, LEDGER)
    source = BoxFile(path, dataset)
    assert source.ledger == LEDGER and f"boxes={sum(counts)}" in repr(source)
    for image_id, own in boxes.items():
        assert same(source(image_id), own)
    assert sorted(p.name for p in path.parent.iterdir()) == ["boxes.json", "boxes.record.json"]


def test_pycocotools_reads_the_file(tmp_path: Path, dataset: Shapes) -> None:
    coco_api = pytest.importorskip("pycocotools.coco")
    boxes = {i: image_boxes(k, 2) for k, i in enumerate(dataset.image_ids)}
    write_boxes(tmp_path / "boxes.json", boxes, dataset.classes, LEDGER)
    truth = coco_api.COCO()
    truth.dataset = {
        "images": [{"id": i, "width": 64, "height": 64} for i in dataset.image_ids],
        "categories": [{"id": k, "name": n} for k, n in enumerate(dataset.classes, start=1)],
        "annotations": [],
    }
    with contextlib.redirect_stdout(None):
        truth.createIndex()
        found = truth.loadRes(str(tmp_path / "boxes.json"))
    rows = found.loadAnns(found.getAnnIds(imgIds=[dataset.image_ids[3]]))
    own = boxes[dataset.image_ids[3]]
    assert [row["category_id"] for row in rows] == own.classes.tolist()
    x, y, width, height = rows[1]["bbox"]
    assert [x, y, x + width, y + height] == pytest.approx(own.boxes[1].tolist())


def test_ids_and_categories_of_other_tools(tmp_path: Path, dataset: Shapes) -> None:
    photos = dataset.subset([0, 1, 2, 3])
    photos.image_ids = ["2007_000032", "000000000139", "07", "7"]
    path = write(
        tmp_path / "a.json",
        entry(2007000032, category_id=17),
        entry(139, category_id="tree", score=1),
        entry("000000000139", category_id=3),
        entry("7", bbox=[-0.3, 0, 64.5, 64.2], category_id=17),
    )
    source = BoxFile(path, photos, [{"id": 17, "name": "bird"}, {"id": 3, "name": "fish"}])
    assert source("2007_000032").boxes.tolist() == [[1, 2, 31, 42]]
    assert source("000000000139").classes.tolist() == [4, 1]
    assert len(source("07")) == 0
    assert source("7").boxes.tolist() == [[0, 0, 64, 64]]  # cut at the border
    assert source.ledger.to_list() == ["boxes: a.json (origin not recorded)"]
    with pytest.raises(InputError, match="not read for image '8'"):
        source("8")
    with pytest.raises(InputError, match=r"of images that the data set does not have: entry 0"):
        BoxFile(write(path, entry(7)), photos)  # fits two photos
    with pytest.raises(InputError, match="categories for"):
        BoxFile(path, photos, [{"id": 1}])


def test_all_problems_in_one_error(tmp_path: Path, dataset: Shapes) -> None:
    image_id = dataset.image_ids[5]
    bad = [
        *[entry(f"nobody-{n}") for n in range(7)],
        entry(image_id, bbox=[40, 40, 30, 10]),
        entry(image_id, bbox=[5, 5, 0, 10]),
        entry(image_id, category_id=6),
        entry(image_id, category_id="whale"),
        entry(image_id, score=float("nan")),
        entry(image_id, score=None),
        entry(image_id, bbox=[1, 2, 3]),
        entry(image_id, bbox=[1e999, 0, 1, 1]),
        "box",
        {"image_id": image_id},
    ]
    path = write(tmp_path / "bad.json", entry(image_id), *bad)
    with pytest.raises(InputError) as error:
        BoxFile(path, dataset)
    first, *lines = str(error.value).splitlines()
    assert first == f"'{path}': 17 of 18 boxes cannot be used"
    counts = {line.split(":")[0].strip(): line.rsplit("(", 1)[1] for line in lines}
    assert counts == {
        "without a valid image_id, category_id, bbox or score": "4 in all)",
        "of images that the data set does not have": "7 in all)",
        "of classes other than 1..5": "2 in all)",
        "with coordinates that are not numbers": "1 in all)",
        "without area": "1 in all)",
        "outside the photo": "1 in all)",
        "with a score that is not a number in [0, 1]": "1 in all)",
    }
    unknown = next(line for line in lines if "data set does not have" in line)
    assert 'entry 1 {"image_id": "nobody-0"' in unknown and "nobody-5" not in unknown
    with pytest.raises(InputError, match="8 of 18 boxes"):
        BoxFile(path, dataset, skip_unknown=True)
    kept = BoxFile(write(path, entry(image_id), *bad[:7], bad[9]), dataset, skip_unknown=True)
    assert len(kept(image_id)) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("[", "are not JSON"),
        ('{"annotations": []}', "COCO annotations; want COCO results"),
        ("3", "must hold a list"),
    ],
)
def test_files_that_are_something_else(
    tmp_path: Path, dataset: Shapes, text: str, message: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        BoxFile(path, dataset)
    with pytest.raises(InputError, match="cannot be read"):
        BoxFile(tmp_path / "none.json", dataset)


def test_no_box_at_all(tmp_path: Path, dataset: Shapes) -> None:
    path = write(tmp_path / "none.json")
    assert len(BoxFile(path, dataset)(dataset.image_ids[0])) == 0
    write_boxes(path, {i: ImageBoxes.empty() for i in dataset.image_ids}, ["a"], LEDGER)
    assert len(BoxFile(path, dataset)(dataset.image_ids[0])) == 0


def test_what_the_record_is_for(tmp_path: Path, dataset: Shapes) -> None:
    path = tmp_path / "boxes.json"
    boxes = {i: image_boxes(k, 3) for k, i in enumerate(dataset.image_ids)}
    shuffled = [*dataset.classes[1:], dataset.classes[0]]
    write_boxes(path, boxes, shuffled, LEDGER)
    found = BoxFile(path, dataset)(dataset.image_ids[0]).classes
    assert [dataset.classes[k - 1] for k in found] == [
        shuffled[k - 1] for k in boxes[dataset.image_ids[0]].classes
    ]
    del boxes[dataset.image_ids[7]]
    write_boxes(path, boxes, dataset.classes, LEDGER)
    with pytest.raises(InputError, match=f"lacks {dataset.image_ids[7]}"):
        BoxFile(path, dataset)
    BoxFile(path, dataset.subset([0, 3]), skip_unknown=True)
    # A record of another file does not count.
    write(path, entry(dataset.image_ids[0]))
    assert BoxFile(path, dataset).ledger.boxes is not None
    record = path.with_name("boxes.record.json")
    record.write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        BoxFile(path, dataset)


def test_bad_boxes_are_not_written(tmp_path: Path) -> None:
    good = image_boxes(0, 2)
    flat = ImageBoxes(torch.tensor([[3.0, 3, 3, 9]]), torch.tensor([9]), torch.tensor([0.5]))
    with pytest.raises(InputError, match="1 of 3 boxes"):
        write_boxes(tmp_path / "a.json", {"a": good, "b": flat}, "abcdef", LEDGER)
    assert list(tmp_path.iterdir()) == []


class Counting:
    """A source that says how often it was asked."""

    ledger = LEDGER

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, image_id: str) -> ImageBoxes:
        self.asked += 1
        return image_boxes(int(image_id.split("_")[1]), 3)


def test_cached_boxes(tmp_path: Path, dataset: Shapes) -> None:
    path, source = tmp_path / "cache" / "boxes.json", Counting()
    few: TaggedDataset = dataset.subset([2, 4, 6])

    def ask(photos: TaggedDataset, **made_from: object) -> BoxFile:
        return cached_boxes(path, source, photos, made_from)

    first = ask(few, model="a", levels=(1, 2))
    assert source.asked == 3 and first.ledger == LEDGER
    for image_id in few.image_ids:
        assert same(first(image_id), image_boxes(int(image_id.split("_")[1]), 3))
    assert same(ask(few, model="a", levels=(1, 2))(few.image_ids[1]), first(few.image_ids[1]))
    ask(dataset.subset([2, 4]), model="a", levels=(1, 2))
    assert source.asked == 3
    ask(few, model="b", levels=(1, 2))
    assert source.asked == 6
    ask(dataset, model="b", levels=(1, 2))  # photos are missing
    assert source.asked == 26
    path.write_text("[]")  # somebody else's
    ask(dataset, model="b", levels=(1, 2))
    assert source.asked == 46
