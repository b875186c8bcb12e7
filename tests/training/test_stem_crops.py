from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset, TaggedFolder
from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.views import View
from pgnn_geo.io.masks import IGNORE, save_mask
from pgnn_geo.nn import build_backbone
from pgnn_geo.training.stem_crops import StemCrops, padded_stems

SIZE, STRIDE = 64, 8


@pytest.fixture
def blocks(tmp_path: Path) -> TaggedDataset:
    """Photos, wide, tall and square, whose blocks of colour are their labels."""
    torch.manual_seed(0)
    names, masks = ("wide", "tall", "square"), []
    (tmp_path / "photos").mkdir()
    for name, (rows, columns) in zip(names, ((4, 8), (8, 3), (8, 8)), strict=True):
        labels = torch.randint(0, 3, (rows, columns)).repeat_interleave(16, 0)
        labels = labels.repeat_interleave(16, 1).byte()  # twice SIZE: photos are scaled by 1/2
        grey = (labels * 100).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(grey).save(tmp_path / "photos" / f"{name}.png")
        masks.append(tmp_path / "masks" / f"{name}.png")
        save_mask(masks[-1], labels)
    rows = "".join(f"{name}.png,one two\n" for name in names)
    (tmp_path / "labels.csv").write_text("image,labels\n" + rows)
    return TaggedFolder(tmp_path / "photos", tmp_path / "labels.csv").with_masks(masks)


def means(dataset: TaggedDataset, folder: Path) -> tuple[FeatureBank, ...]:
    """Stems that hold the mean colour of each 8 x 8 pixels of the padded photo."""
    banks = []
    for flip in (False, True):
        shown = dataset.with_transform(View(SIZE, flip, pad=True).transform)
        images = torch.stack([item["image"].as_subclass(Tensor) for item in shown])
        path, pooled = folder / f"stem-{flip}.npy", F.avg_pool2d(images, STRIDE)
        banks.append(FeatureBank.build(path, lambda first, pooled=pooled: [pooled], len(shown), {}))
    return tuple(banks)


@pytest.mark.parametrize("crop", [24, 40, 64])
def test_stem_and_labels_of_a_window_show_the_same(blocks, tmp_path, crop):
    photos = StemCrops(blocks, means(blocks, tmp_path), SIZE, crop)
    torch.manual_seed(1)
    seen, shapes = 0, set()
    for index in list(range(len(photos))) * 20:
        item = photos[index]
        assert item["mask"].shape == (crop, crop) and item["mask"].dtype == torch.uint8
        assert item["stem"].shape == (3, crop // STRIDE, crop // STRIDE)
        inside = item["mask"][::STRIDE, ::STRIDE] != IGNORE
        colour = item["stem"][0][inside] * 255 / 100
        torch.testing.assert_close(
            colour, item["mask"][::STRIDE, ::STRIDE][inside].float(), atol=0.2, rtol=0
        )
        seen += int(inside.sum())
        shapes.add(tuple(inside.any(1).tolist()) + tuple(inside.any(0).tolist()))
    assert seen > 60 * 5
    if crop == 24:  # windows lie within photos that are large enough
        assert shapes == {(True,) * 6}
    else:  # the narrow side is smaller than the window: 255 beyond it
        assert len(shapes) > 1


def test_windows_are_drawn_from_the_whole_photo_and_its_mirror_image(blocks, tmp_path):
    banks = means(blocks, tmp_path)
    photos = StemCrops(blocks, banks, SIZE, 56)
    torch.manual_seed(2)
    square = blocks.image_ids.index("square")
    stems = [photos[square]["stem"] for _ in range(200)]
    views = [
        bank[square][:, y : y + 7, x : x + 7] for bank in banks for y in (0, 1) for x in (0, 1)
    ]
    counts = [sum(torch.equal(stem, view) for stem in stems) for view in views]
    assert sum(counts) == 200 and min(counts) > 5


def test_labels_may_change_while_stems_stay(blocks, tmp_path):
    banks = means(blocks, tmp_path)
    paths = [tmp_path / "new" / f"{name}.png" for name in blocks.image_ids]
    for index, path in enumerate(paths):
        save_mask(path, torch.full(blocks.photo_size(index), 2, dtype=torch.uint8))
    item = StemCrops(blocks.with_masks(paths), banks, SIZE, 24)[0]
    assert (item["mask"] == 2).all()


def test_sizes_that_do_not_fit(blocks, tmp_path):
    banks = means(blocks, tmp_path)
    with pytest.raises(InputError, match="size=60: want a multiple"):
        StemCrops(blocks, banks, 60, 24)
    for crop in (4, 72):
        with pytest.raises(InputError, match=f"crop={crop}: want 8 to 64"):
            StemCrops(blocks, banks, SIZE, crop)


def test_stems_are_the_frozen_stages_of_the_padded_photos(blocks, tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone("vgg_tiny", None, 8, freeze_stages=2).eval()
    banks = padded_stems(backbone, blocks, tmp_path, SIZE, "32-true")
    again = padded_stems(backbone, blocks, tmp_path, SIZE, "32-true")
    assert [bank.path for bank in banks] == [bank.path for bank in again]
    for flip, bank in enumerate(banks):
        for index, item in enumerate(blocks.with_transform(View(SIZE, bool(flip), True).transform)):
            with torch.no_grad():
                stem = backbone.stem(item["image"].as_subclass(Tensor)[None])[0]
            torch.testing.assert_close(bank[index], stem, rtol=1e-2, atol=1e-2)
