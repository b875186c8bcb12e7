import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pgnn_geo.datasets import SHAPES_CLASSES, VOC2012, Shapes
from pgnn_geo.datasets.shapes import Scene, draw_scene
from pgnn_geo.errors import InputError
from pgnn_geo.io.masks import load_mask

SMALL: dict[str, Any] = {"num_images": (20, 10), "size": 64}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(0, "train", i, 96) for i in range(80)]


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_same_seed_gives_the_same_files(shapes_root: Path, tmp_path: Path) -> None:
    Shapes(tmp_path / "again", "val", **SMALL)
    assert files_of(tmp_path / "again") == files_of(shapes_root)
    Shapes(tmp_path / "more", "val", num_images=(21, 10), size=64)
    for name in ("JPEGImages/train_00007.jpg", "SegmentationClass/val_00003.png"):
        assert (tmp_path / "more" / name).read_bytes() == (shapes_root / name).read_bytes()
    Shapes(tmp_path / "other", "val", **SMALL, seed=1)
    assert (
        files_of(tmp_path / "other")["JPEGImages/val_00000.jpg"]
        != (files_of(shapes_root)["JPEGImages/val_00000.jpg"])
    )
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_read_by_the_very_path_of_voc(shapes_root: Path) -> None:
    shapes = Shapes(shapes_root, "train", with_masks=True, **SMALL)
    for source in ("auto", "masks"):
        voc = VOC2012(shapes_root, "train", tags=source, with_masks=True)
        assert voc.classes == shapes.classes == SHAPES_CLASSES
        assert torch.equal(voc.tags, shapes.tags) and voc.image_ids == shapes.image_ids
    assert isinstance(shapes, VOC2012) and shapes.tag_source == "csv"
    assert shapes.check() == [] and len(Shapes(shapes_root, "val", **SMALL)) == 10
    item = shapes[3]
    assert item["image"].shape == (3, 64, 64)
    assert torch.equal(item["mask"], load_mask(shapes.mask_path(3)))
    drawn = draw_scene(0, "train", 3, 64)
    assert np.array_equal(item["mask"].numpy(), drawn.mask)
    difference = item["image"].permute(1, 2, 0).numpy().astype(int) - drawn.image
    assert np.abs(difference).mean() < 4  # what JPEG costs
    fish = VOC2012(shapes_root, "train", classes=["fish"])
    assert 4 <= len(fish) < 20


def test_a_killed_generation_leaves_nothing_and_is_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, calls = tmp_path / "set", []

    def dies(seed: int, split: str, index: int, size: int) -> Scene:
        calls.append(index)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return draw_scene(seed, split, index, size)

    with monkeypatch.context() as patch:
        patch.setattr("pgnn_geo.datasets.shapes.draw_scene", dies)
        with pytest.raises(KeyboardInterrupt):
            Shapes(root, "train", **SMALL)
    assert list(tmp_path.iterdir()) == []
    left = tmp_path / ".set.unfinished.abc"  # by a process that had no time to tidy up
    left.mkdir()
    os.utime(left, (0, 0))
    assert Shapes(root, "train", **SMALL).check() == []
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_made_once(shapes_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("pgnn_geo.datasets.shapes.draw_scene")
    assert len(Shapes(shapes_root, "train", **SMALL)) == 20


def test_other_arguments_and_other_content_are_refused(shapes_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds shapes made with.*'seed': 0.*asked.*'seed': 5"):
        Shapes(shapes_root, "train", **SMALL, seed=5)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="holds something else"):
        Shapes(tmp_path, "train", **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="cannot be written"):
        Shapes(tmp_path / "mine.txt" / "set", "train", **SMALL)
    with pytest.raises(InputError, match="split: got 'test'"):
        Shapes(tmp_path / "set", "test")
    with pytest.raises(InputError, match="num_images"):
        Shapes(tmp_path / "set", "train", size=8)
    (tmp_path / "empty").mkdir()
    assert len(Shapes(tmp_path / "empty", "val", **SMALL)) == 10
    assert json.loads((tmp_path / "empty" / "shapes.json").read_text())["size"] == 64


def test_a_part_is_small_and_belongs_to_its_object(scenes: list[Scene]) -> None:
    shares = []
    for scene in scenes:
        labels = {int(v) for v in np.unique(scene.mask) if v}
        assert 1 <= len(labels) <= 2
        assert {int(v) for v in np.unique(scene.part) if v} == labels  # always, and only then
        assert (scene.mask[scene.part > 0] == scene.part[scene.part > 0]).all()
        assert not (scene.stone[scene.mask > 0]).any()  # stones are background
        shares.append((scene.part > 0).sum() / (scene.mask > 0).sum())
    assert 0.04 < np.mean(shares) < 0.16 and max(shares) < 0.3
    assert 0.2 < np.mean([len(np.unique(s.mask)) == 3 for s in scenes]) < 0.45
    counts = [sum((s.mask == c).any() for s in scenes) for c in range(1, 6)]
    assert min(counts) >= 16  # every class in a fifth of the images or more


def test_the_body_pattern_tells_no_tag(scenes: list[Scene]) -> None:
    for c in range(1, len(SHAPES_CLASSES) + 1):
        amount: dict[bool, list[int]] = {True: [], False: []}
        for scene in scenes:
            body = (scene.mask == c) & (scene.part == 0)
            amount[bool(body.any())].append(int((body | (scene.stone == c)).sum()))
        assert min(amount[False]) > 0  # in every image
        assert 0.75 < np.mean(amount[True]) / np.mean(amount[False]) < 1.6
        # and the amounts overlap: no threshold tells the images apart
        best = max(
            np.mean([a > t for a in amount[True]]) - np.mean([a > t for a in amount[False]])
            for t in range(0, 4000, 50)
        )
        assert best < 0.6
    own = [(s.stone > 0) & np.isin(s.stone, np.unique(s.mask)[1:]) for s in scenes]
    assert 0.05 < np.mean([o.any() for o in own]) < 0.4  # some bodies have a double


def histogram(scenes: list[Scene], where: str, label: int) -> NDArray[np.float64]:
    """Colours of a class's bodies, parts or stones, 6 levels a channel."""
    total = np.zeros(216)
    for scene in scenes:
        chosen = {
            "body": (scene.mask == label) & (scene.part == 0),
            "part": scene.part == label,
            "stone": scene.stone == label,
        }[where]
        levels = scene.image[chosen].astype(int) * 6 // 256
        total += np.bincount(levels @ np.array([36, 6, 1]), minlength=216)
    return total / total.sum()


def test_pixels_show_the_problem(scenes: list[Scene]) -> None:
    count = len(SHAPES_CLASSES)
    made = {
        (where, c): histogram(scenes, where, c)
        for where in ("body", "part", "stone")
        for c in range(1, count + 1)
    }

    def overlap(a: tuple[str, int], b: tuple[str, int]) -> float:
        return float(np.minimum(made[a], made[b]).sum())

    for c in range(1, count + 1):
        others = [d for d in range(1, count + 1) if d != c]
        # A body looks like the stones in its pattern, more than like any other body,
        assert overlap(("body", c), ("stone", c)) > 0.6
        assert all(
            overlap(("body", c), ("body", d)) < overlap(("body", c), ("stone", c)) for d in others
        )
        # and like its own kind in other images: halves of the set agree.
        halves = [histogram(scenes[k::2], "body", c) for k in (0, 1)]
        assert np.minimum(*halves).sum() > 0.6
        # A part looks like nothing else.
        assert all(overlap(("part", c), (w, d)) < 0.15 for w in ("body", "stone") for d in others)
        assert all(overlap(("part", c), ("part", d)) < 0.45 for d in others)
