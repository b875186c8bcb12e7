"""A tiny VOC tree in which all three tag sources say the same."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image

from pgnn_geo.datasets import VOC_CLASSES
from pgnn_geo.io.masks import save_mask

TREE_TAGS = {
    "2007_000001": ("cat", "person"),
    "2007_000002": ("dog",),
    "2007_000003": ("chair", "dog"),
    "2007_000004": ("sofa",),
}
SIZE = (24, 36)  # height, width

XML = """<annotation><filename>{0}.jpg</filename>{1}</annotation>"""
OBJECT = """<object><name>{0}</name><difficult>{1}</difficult>
<part><name>head</name></part></object>"""


class WritePhoto(Protocol):
    def __call__(
        self, path: Path, size: tuple[int, int] = ..., seed: int = ..., **options: Any
    ) -> None: ...


@pytest.fixture(scope="session")
def write_photo() -> WritePhoto:
    """Smooth noise, so that JPEG keeps it nearly as it is."""

    def write(path: Path, size: tuple[int, int] = SIZE, seed: int = 0, **options: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR)
        image.save(path, **options)

    return write


@pytest.fixture
def voc_tree(tmp_path: Path, write_photo: WritePhoto) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (root / "Annotations").mkdir()
    ids = list(TREE_TAGS)
    (lists / "train.txt").write_text("\n".join(ids[:3]) + "\n")
    (lists / "val.txt").write_text(ids[3] + "\n")
    (lists / "train_aug.txt").write_text(
        "".join(f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n" for i in ids)
    )
    (lists / "test.txt").write_text("2008_000009\n")
    write_photo(root / "JPEGImages" / "2008_000009.jpg")
    rows = ["image,labels"]
    for seed, (image_id, names) in enumerate(TREE_TAGS.items()):
        write_photo(root / "JPEGImages" / f"{image_id}.jpg", seed=seed)
        # The last object of each image is difficult, every object has a part named 'head'.
        objects = [OBJECT.format(n, int(n == names[-1])) for n in (names[0], *names)]
        (root / "Annotations" / f"{image_id}.xml").write_text(
            XML.format(image_id, "".join(objects))
        )
        mask = np.zeros(SIZE, dtype=np.uint8)
        mask[:, 0] = 255
        for k, name in enumerate(names):
            mask[4 * k + 2 : 4 * k + 5, 3:20] = VOC_CLASSES.index(name) + 1
        save_mask(root / "SegmentationClass" / f"{image_id}.png", mask)
        rows.append(f"{image_id},{' '.join(names)}")
    (root / "image_labels.csv").write_text("\n".join(rows) + "\n")
    return root
