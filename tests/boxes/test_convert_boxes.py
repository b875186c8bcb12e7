"""The example that turns other detectors' files into boxes."""

import os
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgnn_geo.boxes import BoxFile
from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError

SCRIPT = Path(__file__).parents[2] / "examples" / "convert_boxes.py"


@pytest.fixture(scope="module")
def dataset(shapes_root: Path) -> Shapes:
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64)


@pytest.fixture
def convert(tmp_path: Path, dataset: Shapes, monkeypatch: pytest.MonkeyPatch) -> Any:
    def convert(content: object, *arguments: str, name: str = "dets.pkl") -> BoxFile:
        if name.endswith(".pkl"):
            (tmp_path / name).write_bytes(pickle.dumps(content))
        (tmp_path / "ids.txt").write_text("\n".join(dataset.image_ids))
        options = [str(tmp_path / name), "--images", str(tmp_path / "ids.txt")]
        options += ["--out", str(tmp_path / "boxes.json"), "--classes", ",".join(dataset.classes)]
        options += ["--boxes", "COCO 60", "--tags", "VOC", *arguments]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return BoxFile(tmp_path / "boxes.json", dataset)

    return convert


def lists(dataset: Shapes, background: bool) -> list[list[Any]]:
    empty = np.zeros((0, 5), dtype=np.float32)
    table: list[list[Any]] = [[empty] * len(dataset) for _ in dataset.classes]
    table[2][4] = np.array([[3, 4, 9, 63, 0.5], [0, 0, 63, 63, 0.75]], dtype=np.float32)
    table[0][4] = np.array([[1, 1, 5, 5, 0.25]])
    return [[[] for _ in dataset.image_ids], *table] if background else table


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("wrap", [False, True])
def test_lists_by_class_and_image(
    convert: Any, dataset: Shapes, background: bool, wrap: bool
) -> None:
    table = lists(dataset, background)
    source = convert({"all_boxes": table, "cfg": "text"} if wrap else table)
    boxes = source(dataset.image_ids[4])
    assert boxes.boxes.tolist() == [[0, 0, 64, 64], [3, 4, 10, 64], [1, 1, 6, 6]]
    assert boxes.classes.tolist() == [3, 3, 1] and boxes.scores.tolist() == [0.75, 0.5, 0.25]
    assert len(source(dataset.image_ids[3])) == 0
    assert source.ledger.to_list() == ["tags: VOC", "boxes: COCO 60"]


def test_options(convert: Any, dataset: Shapes) -> None:
    image_id, table = dataset.image_ids[4], lists(dataset, background=False)
    assert len(convert(table, "--top", "1")(image_id)) == 1
    assert convert(table, "--min-score", "0.4")(image_id).classes.tolist() == [3, 3]
    assert convert(table, "--nms", "0.1")(image_id).classes.tolist() == [3, 1]


def test_dictionaries_by_photo(convert: Any, dataset: Shapes) -> None:
    scores = np.full((2, len(dataset.classes) + 1), 0.01)
    scores[1, 4] = 0.9
    boxes = np.array([[0, 0, 9, 9], [10, 20, 29, 49]])
    content = {f"/data/{dataset.image_ids[2]}.jpg": {"boxes": boxes, "scores": scores}}
    found = convert(content, "--min-score", "0.5")(dataset.image_ids[2])
    assert found.boxes.tolist() == [[10, 20, 30, 50]] and found.classes.tolist() == [4]


def test_matlab(convert: Any, dataset: Shapes, tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    cells = np.empty((len(dataset.classes), len(dataset)), dtype=object)
    cells[:] = [[np.zeros((0, 5))] * len(dataset)] * len(dataset.classes)
    cells[1, 0] = np.array([[1.0, 2, 10, 20, 0.5]])
    io.savemat(tmp_path / "dets.mat", {"dets": cells})
    found = convert(None, "--variable", "dets", name="dets.mat")(dataset.image_ids[0])
    assert found.boxes.tolist() == [[0, 1, 10, 20]] and found.classes.tolist() == [2]


class Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trap",)


def test_a_pickle_that_runs_code(
    convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"wants to call (posix|nt)\.mkdir"):
        convert([Trap()])
    assert not (tmp_path / "trap").exists()


def test_files_of_another_shape(convert: Any, dataset: Shapes) -> None:
    with pytest.raises(InputError, match="9 classes of 20 images, want 5 of 20"):
        convert(4 * [[[]] * 20] + lists(dataset, background=False))
    with pytest.raises(InputError, match="5 classes of 3 images"):
        convert([row[:3] for row in lists(dataset, background=False)])
