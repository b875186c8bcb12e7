import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from pgnn_geo.boxes import ProposalCache, ProposalConfig, proposals, selective_search
from pgnn_geo.datasets import Shapes
from pgnn_geo.errors import InputError

FULL = ProposalConfig(side=None)


@pytest.fixture
def cv2() -> None:
    pytest.importorskip("cv2")


@pytest.fixture
def dataset(shapes_root: Path) -> Shapes:
    whole = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    return whole.subset([0, 1, 2, 3])


def drawing() -> Tensor:
    """A red block on noisy grey, 90 x 120."""
    image = torch.randint(90, 110, (3, 90, 120), generator=torch.Generator().manual_seed(0))
    image[0, 20:60, 30:100] = 250
    return image.byte()


def is_valid(boxes: Tensor, height: int, width: int) -> bool:
    low, high = boxes[:, :2], boxes[:, 2:]
    inside = (low >= 0).all() and (high <= torch.tensor([width, height])).all()
    return bool(inside and (high > low).all() and len(boxes.unique(dim=0)) == len(boxes))


@pytest.mark.parametrize("config", [FULL, ProposalConfig(side=45), ProposalConfig("quality", 60)])
def test_the_object_is_proposed(cv2: None, config: ProposalConfig) -> None:
    boxes = selective_search(drawing(), config)
    assert boxes.dtype == torch.float32 and is_valid(boxes, 90, 120)
    assert box_iou(boxes, torch.tensor([[30.0, 20, 100, 60]])).max() > 0.85
    assert torch.equal(boxes, boxes.round())


def test_the_same_boxes_every_time(cv2: None, dataset: Shapes) -> None:
    image = dataset[0]["image"]
    boxes = selective_search(image, FULL)
    assert torch.equal(boxes, selective_search(image, FULL))
    few = selective_search(image, ProposalConfig(side=None, max_boxes=7))
    assert torch.equal(few, boxes[:7])
    other = selective_search(image, ProposalConfig(side=None, seed=1))
    assert not torch.equal(boxes, other)
    assert torch.equal(boxes.unique(dim=0), other.unique(dim=0))


def test_small_boxes_are_left_out(cv2: None, dataset: Shapes) -> None:
    boxes = selective_search(dataset[0]["image"], ProposalConfig(side=None, min_side=0.4))
    every = selective_search(dataset[0]["image"], ProposalConfig(side=None, min_side=0))
    assert 0 < len(boxes) < len(every)
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 0.4 * 64


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (9, 7)])
def test_hardly_a_photo(cv2: None, size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *size)).byte()
    for config in (FULL, ProposalConfig(side=4)):
        assert is_valid(selective_search(image, config), *size)


def test_a_cache_goes_on_where_it_was(
    cv2: None, dataset: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def counting(image: Tensor, config: ProposalConfig) -> Tensor:
        searched.append(image)
        return selective_search(image, config)

    monkeypatch.setattr(proposals, "selective_search", counting)
    ProposalCache(tmp_path, dataset.subset([0, 2]), FULL).fill(workers=2)
    assert len(searched) == 2
    cache = ProposalCache(tmp_path, dataset, FULL)
    assert cache.missing() == [1, 3]
    with pytest.raises(InputError, match=f"'{dataset.image_ids[1]}' has no proposals"):
        cache(dataset.image_ids[1])
    cache.fill(workers=2)
    assert len(searched) == 4 and cache.missing() == []
    for i, image_id in enumerate(dataset.image_ids):
        assert torch.equal(cache(image_id), selective_search(dataset[i]["image"], FULL))
    cache.fill()
    assert len(searched) == 4
    # Made another way: beside it, not instead of it.
    other = ProposalCache(tmp_path, dataset, ProposalConfig(side=None, max_boxes=3)).fill(1)
    assert len(searched) == 8 and max(len(other(i)) for i in dataset.image_ids) == 3
    assert cache.missing() == [] and not list(tmp_path.rglob(".*"))


def test_damaged_files_and_changed_photos(
    cv2: None, dataset: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [tmp_path / "photos" / f"{i}.jpg" for i in range(4)]
    (tmp_path / "photos").mkdir()
    for i, path in enumerate(photos):
        path.write_bytes(dataset.image_path(i).read_bytes())
    monkeypatch.setattr(dataset, "_images", photos)
    cache = ProposalCache(tmp_path, dataset, FULL).fill(2)
    file = cache.folder / f"{dataset.image_ids[1]}.npz"
    file.write_bytes(file.read_bytes()[:-30])
    Image.new("RGB", (64, 64), "green").save(photos[2])
    assert cache.missing() == [1, 2]
    with pytest.raises(InputError, match="cannot be read"):
        cache(dataset.image_ids[1])
    cache.fill(2)
    assert cache.missing() == []
    # A photo in one colour: one region, the photo itself.
    assert cache(dataset.image_ids[2]).tolist() == [[0, 0, 64, 64]]


def test_another_opencv(
    cv2: None, dataset: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ProposalCache(tmp_path, dataset.subset([0]), FULL).fill(1)
    monkeypatch.setattr("cv2.__version__", "2.4")
    with pytest.raises(InputError, match=r"opencv: '.*' there, '2.4' asked for"):
        ProposalCache(tmp_path, dataset, FULL).fill(1)
    assert cache.fill().missing() == []  # what is there can be read


@pytest.mark.parametrize("module", [None, SimpleNamespace(__version__="4.10")])
def test_without_opencv(
    module: object, dataset: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", module)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"pip install 'pgnn-geo\[detect\]'"):
        selective_search(drawing())
    with pytest.raises(InputError, match=r"pip install 'pgnn-geo\[detect\]'"):
        ProposalCache(tmp_path, dataset).fill()
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments() -> None:
    for name, value in (("mode", "best"), ("side", -1), ("max_boxes", 0), ("min_side", 1)):
        with pytest.raises(InputError, match=f"{name}={value!r}"):
            ProposalConfig(**{name: value})
    with pytest.raises(InputError, match="uint8"):
        selective_search(torch.zeros(3, 4, 4))
