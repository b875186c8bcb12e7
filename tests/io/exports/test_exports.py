"""Every export is read back by the tool that it is for, or by a library that reads its files."""

import importlib.util
import json
import time
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pgnn_geo.errors import InputError, InputNote
from pgnn_geo.io.exports import EXPORTS, check_exports, write_exports
from pgnn_geo.io.exports.label_studio import encode_brush
from pgnn_geo.io.exports.yolo import polygons
from pgnn_geo.io.masks import load_mask, save_mask, voc_palette

CLASSES = ("cat", "traffic light", 'the "dog" & <co>')


@pytest.fixture
def labels(tmp_path: Path) -> dict[str, np.ndarray]:
    """Label images with holes, several parts, one-pixel parts, 255, and nothing."""
    ring = np.zeros((40, 60), dtype=np.uint8)
    ring[5:30, 5:40] = 1
    ring[10:20, 10:20] = 0
    ring[12:15, 12:15] = 2
    ring[35, 50] = 1
    ring[0, :] = 255
    noise = np.random.default_rng(0).choice(np.array([0, 1, 2, 3, 255], np.uint8), (30, 25))
    masks = {"ring": ring, "trip/noise": noise, "trip/empty": np.zeros((7, 9), np.uint8)}
    for name, mask in masks.items():
        save_mask(tmp_path / "labels" / f"{name}.png", mask)
        photo = tmp_path / "photos" / f"{name}.jpg"
        photo.parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", mask.shape[::-1], "gray").save(photo)
    (tmp_path / "photos" / "trip" / "empty.jpg").rename(tmp_path / "photos/trip/empty.jfif")
    return masks


def write(tmp_path: Path, name: str) -> Path:
    photos = [
        ("ring", "ring.jpg"),
        ("trip/noise", "trip/noise.jpg"),
        ("trip/empty", "trip/empty.jfif"),
    ]
    files = [(image_id, tmp_path / "photos" / file) for image_id, file in photos]
    (folder,) = write_exports(
        check_exports(name), tmp_path / "out", files, tmp_path / "labels", CLASSES
    )
    assert folder == tmp_path / "out" / name
    return folder


def without_255(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.where(mask == 255, 0, mask) for name, mask in masks.items()}


def test_voc(labels: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = write(tmp_path, "voc")
    ids = (folder / "ImageSets" / "Segmentation" / "train.txt").read_text().splitlines()
    assert ids == list(labels) and (folder / "classes.txt").read_text().splitlines() == [*CLASSES]
    for name, mask in labels.items():
        with Image.open(folder / "SegmentationClass" / f"{name}.png") as image:
            assert np.array_equal(np.asarray(image), mask)
            assert np.array_equal(np.asarray(image.convert("RGB")), voc_palette()[mask])


def test_coco(labels: dict[str, np.ndarray], tmp_path: Path) -> None:
    coco_api = pytest.importorskip("pycocotools.coco")
    coco = coco_api.COCO(str(write(tmp_path, "coco") / "annotations.json"))
    names = {entry["id"]: entry["name"] for entry in coco.dataset["categories"]}
    assert [names[k] for k in (1, 2, 3)] == list(CLASSES)
    files = [entry["file_name"] for entry in coco.dataset["images"]]
    assert files == ["ring.jpg", "trip/noise.jpg", "trip/empty.jfif"]
    for entry, mask in zip(coco.dataset["images"], labels.values(), strict=True):
        found = np.zeros_like(mask)
        for record in coco.imgToAnns[entry["id"]]:
            found[coco.annToMask(record) > 0] = record["category_id"]
        assert np.array_equal(found, mask)


def read_yolo(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """As Ultralytics does: coordinates times the size, cut off behind the point, filled."""
    cv2 = pytest.importorskip("cv2")
    found = np.zeros(shape, dtype=np.uint8)
    for line in path.read_text().splitlines():
        label, *numbers = line.split()
        points = np.array(numbers, dtype=np.float32).reshape(-1, 2) * (shape[1], shape[0])
        cv2.fillPoly(found, [points.astype(np.int32)], color=int(label) + 1)
    return found


def test_yolo(labels: dict[str, np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    folder = write(tmp_path, "yolo")
    for name, mask in without_255(labels).items():
        text = folder / "labels" / "train" / f"{name}.txt"
        assert np.array_equal(read_yolo(text, mask.shape), mask)
        with Image.open(folder / "images" / "train" / f"{name}.jpg") as image:
            assert image.size == mask.shape[::-1]
    yaml = pytest.importorskip("yaml")
    data = yaml.safe_load((folder / "data.yaml").read_text())
    assert data["names"] == dict(enumerate(CLASSES))
    assert (folder / data["train"]).is_dir() and (folder / data["val"]).is_dir()


def test_supervision_reads_yolo(labels: dict[str, np.ndarray], tmp_path: Path) -> None:
    sv = pytest.importorskip("supervision")
    folder = write(tmp_path, "yolo")
    for name in ("", "trip"):
        data = sv.DetectionDataset.from_yolo(
            str(folder / "images" / "train" / name),
            str(folder / "labels" / "train" / name),
            str(folder / "data.yaml"),
            force_masks=True,
        )
        for path, _, detections in data:
            image_id = f"{name}/{Path(path).stem}".strip("/")
            mask = without_255(labels)[image_id]
            found = np.zeros_like(mask)
            regions = () if detections.mask is None else detections.mask  # there is no object
            for region, label in zip(regions, detections.class_id, strict=True):
                found[region] = label + 1
            assert np.array_equal(found, mask)


@settings(deadline=None, max_examples=100)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)))
def test_polygons_filled_are_the_region(region: np.ndarray) -> None:
    cv2 = pytest.importorskip("cv2")
    found = np.zeros(region.shape, dtype=np.uint8)
    for points in polygons(region):
        assert points.shape[0] >= 3 and points.shape[1] == 2
        cv2.fillPoly(found, [points.astype(np.int32)], color=1)
    assert np.array_equal(found.astype(bool), region)
    parts, _ = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
    assert len(polygons(region)) == parts - 1


def test_holes_within_holes_beside_holes() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(1)
    small = rng.random((40, 50)) > 0.35
    region = np.kron(small, np.ones((3, 4))).astype(bool)
    found = np.zeros(region.shape, dtype=np.uint8)
    for points in polygons(region):
        cv2.fillPoly(found, [points.astype(np.int32)], color=1)
    assert np.array_equal(found.astype(bool), region)


def test_cvat(labels: dict[str, np.ndarray], tmp_path: Path) -> None:
    """By the rules of its documentation: colours of `labelmap.txt`, the background among them."""
    archive = zipfile.ZipFile(write(tmp_path, "cvat") / "segmentation_mask.zip")
    head, *rows = archive.read("labelmap.txt").decode().splitlines()
    assert head == "# label:color_rgb:parts:actions"
    colors = {tuple(map(int, row.split(":")[1].split(","))): row.split(":")[0] for row in rows}
    assert list(colors.values()) == ["background", *CLASSES]
    ids = archive.read("ImageSets/Segmentation/default.txt").decode().splitlines()
    assert ids == list(labels)
    for name, mask in without_255(labels).items():
        with archive.open(f"SegmentationClass/{name}.png") as file, Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        found = np.array(
            [
                [["background", *CLASSES].index(colors[tuple(p)]) for p in row]
                for row in pixels.tolist()
            ]
        )
        assert np.array_equal(found, mask)
        with archive.open(f"SegmentationObject/{name}.png") as file, Image.open(file) as image:
            objects = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(objects, axis=0)) == len(np.unique(mask))


def test_datumaro_reads_cvat(labels: dict[str, np.ndarray], tmp_path: Path) -> None:
    dm = pytest.importorskip("datumaro")
    folder = tmp_path / "unpacked"
    zipfile.ZipFile(write(tmp_path, "cvat") / "segmentation_mask.zip").extractall(folder)
    data = dm.Dataset.import_from(str(folder), "voc_segmentation")
    names = [label.name for label in data.categories()[dm.AnnotationType.label]]
    assert names == ["background", *CLASSES]
    for item in data:
        found = np.zeros_like(labels[item.id])
        for mask in item.annotations:
            found[np.asarray(mask.image, dtype=bool)] = mask.label
        assert np.array_equal(found, without_255(labels)[item.id])
    assert {item.id for item in data} == set(labels)


def test_datumaro(labels: dict[str, np.ndarray], tmp_path: Path) -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    document = json.loads((write(tmp_path, "datumaro") / "annotations" / "train.json").read_text())
    names = [entry["name"] for entry in document["categories"]["label"]["labels"]]
    assert names == list(CLASSES)
    for item in document["items"]:
        found = np.zeros_like(labels[item["id"]])
        for mask in item["annotations"]:
            found[mask_api.decode(mask["rle"]) > 0] = mask["label_id"] + 1
        assert np.array_equal(found, without_255(labels)[item["id"]])
    assert [item["id"] for item in document["items"]] == list(labels)


def test_datumaro_reads_its_own(labels: dict[str, np.ndarray], tmp_path: Path) -> None:
    dm = pytest.importorskip("datumaro")
    data = dm.Dataset.import_from(str(write(tmp_path, "datumaro")), "datumaro")
    assert [label.name for label in data.categories()[dm.AnnotationType.label]] == list(CLASSES)
    assert {item.id for item in data} == set(labels)
    for item in data:
        found = np.zeros_like(labels[item.id])
        for mask in item.annotations:
            found[np.asarray(mask.image, dtype=bool)] = mask.label + 1
        assert np.array_equal(found, without_255(labels)[item.id])


def decode_brush(rle: list[int]) -> np.ndarray:
    """Values of rle-pack, read bit by bit after its documentation."""
    text, at = "".join(f"{byte:08b}" for byte in rle), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(text[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        is_run, size = take(1), sizes[take(2)]
        count = take(size) + 1
        values += [take(word)] * count if is_run else [take(word) for _ in range(count)]
    return np.array(values, dtype=np.uint8)


def test_label_studio(labels: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = write(tmp_path, "label_studio")
    tasks = json.loads((folder / "tasks.json").read_text())
    files = [task["data"]["image"] for task in tasks]
    assert files == ["ring.jpg", "trip/noise.jpg", "trip/empty.jfif"]
    for task, mask in zip(tasks, without_255(labels).values(), strict=True):
        found = np.zeros_like(mask)
        for part in task["predictions"][0]["result"]:
            assert (part["original_height"], part["original_width"]) == mask.shape
            (name,) = part["value"]["brushlabels"]
            pixels = decode_brush(part["value"]["rle"]).reshape(*mask.shape, 4)
            found[pixels[..., 3] > 0] = CLASSES.index(name) + 1
        assert np.array_equal(found, mask)
    setup = ElementTree.parse(folder / "labeling_config.xml").getroot()
    assert [entry.attrib["value"] for entry in setup.iter("Label")] == list(CLASSES)


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_label_studio_s_own_decoder(region: np.ndarray) -> None:
    found = importlib.util.find_spec("label_studio_sdk")
    if found is None or found.origin is None:
        pytest.skip("label_studio_sdk is not installed")
    path = Path(found.origin).parent / "converter" / "brush.py"
    spec = importlib.util.spec_from_file_location("brush", path)  # without all that it imports
    assert spec is not None and spec.loader is not None
    brush = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(brush)
    pixels = brush.decode_rle(encode_brush(region)).reshape(*region.shape, 4)
    assert np.array_equal(pixels[..., 3] > 0, region)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(1, 400), st.booleans())
def test_brushes_of_any_length(height: int, width: int, full: bool) -> None:
    region = np.full((height, width), full)
    region[height // 2, width // 3] ^= True
    values = decode_brush(encode_brush(region))
    assert np.array_equal(values.reshape(height, width, 4)[..., 0] > 0, region)


def test_cityscapes(labels: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = write(tmp_path, "cityscapes")
    rows = (folder / "labels.txt").read_text().splitlines()
    assert rows == ["0 background", *(f"{k} {n}" for k, n in enumerate(CLASSES, 1)), "255 ignored"]
    for name, mask in labels.items():
        with Image.open(folder / "gtFine" / "train" / f"{name}_gtFine_labelTrainIds.png") as image:
            assert image.mode == "L" and np.array_equal(np.asarray(image), mask)


def test_one_name_that_is_too_long_does_not_stop_the_others(tmp_path: Path) -> None:
    """Cityscapes' names are 25 bytes longer than the photos'."""
    names = ["ü" * 115, "n" * 230, "n" * 231, "a"]
    for name in names:
        save_mask(tmp_path / "labels" / f"{name}.png", np.eye(4, dtype=np.uint8))
    files = [(name, tmp_path / f"{name}.jpg") for name in names]
    place = (tmp_path / "out", files, tmp_path / "labels", CLASSES)
    with pytest.warns(InputNote, match=r"cityscapes leaves .* 'nnn.* \(1 in all\); rename"):
        write_exports(check_exports("cityscapes"), *place)
    written = {path.name for path in (tmp_path / "out" / "cityscapes" / "gtFine").rglob("*.png")}
    assert written == {f"{n}_gtFine_labelTrainIds.png" for n in names if n != "n" * 231}


def test_what_cannot_be_exported(
    labels: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_exports(None) == [] and check_exports("") == []
    assert [e.name for e in check_exports("yolo, coco,yolo")] == ["yolo", "coco"]
    assert [EXPORTS[name].name for name in EXPORTS] == list(EXPORTS)
    with pytest.raises(InputError, match="unknown export 'yolov8': want one of voc, coco, yolo"):
        check_exports("yolov8")
    first = write(tmp_path, "cityscapes")
    before = sorted(path.relative_to(first) for path in first.rglob("*"))
    save_mask(tmp_path / "labels" / "trip" / "empty.png", np.full((7, 9), 9, np.uint8))
    with pytest.raises(InputError, match="'trip/empty' holds label 9"):
        write(tmp_path, "cityscapes")
    (tmp_path / "labels" / "trip" / "empty.png").unlink()
    with pytest.raises(InputError, match=r"empty\.png' does not exist"):
        write(tmp_path, "cityscapes")
    assert sorted(path.relative_to(first) for path in first.rglob("*")) == before
    assert load_mask(first / "gtFine" / "train" / "ring_gtFine_labelTrainIds.png").shape == (40, 60)
    monkeypatch.setattr("pgnn_geo.io.exports.write.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--export yolo needs cv2: pip install 'pgnn-geo\[export"):
        check_exports("yolo")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # by the clock: others may run
@pytest.mark.parametrize("name", list(EXPORTS))
def test_ten_thousand_photos_in_under_a_minute(tmp_path: Path, name: str) -> None:
    """Masks of smooth parts as the labels of photos have them; their decoding is in the time."""
    rng = np.random.default_rng(0)
    photos = []
    for k in range(20):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8))
        values = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        save_mask(tmp_path / "masks" / f"{k}.png", np.where(values > 150, 1 + k % 3, 0))
        Image.new("RGB", (500, 375)).save(tmp_path / f"{k}.jpg")
    for k in range(10_000):
        mask = tmp_path / "labels" / f"{k}.png"
        mask.parent.mkdir(exist_ok=True)
        mask.symlink_to(tmp_path / "masks" / f"{k % 20}.png")
        photos.append((str(k), tmp_path / f"{k % 20}.jpg"))
    start = time.process_time()
    write_exports(check_exports(name), tmp_path / "out", photos, tmp_path / "labels", CLASSES)
    seconds = time.process_time() - start
    print(f"{name}: {seconds:.0f} s")
    assert seconds < 60, seconds
