"""Hugging Face data sets, written by their own library, as photos and tags of a folder."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pgnn_geo.app.cli import main
from pgnn_geo.datasets import TaggedFolder
from pgnn_geo.datasets.formats import recognise
from pgnn_geo.datasets.hugging_face import unpack, unpack_once
from pgnn_geo.errors import InputError

hf = pytest.importorskip("datasets")
pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

pytestmark = pytest.mark.filterwarnings("ignore::pgnn_geo.errors.InputNote")

CLASSES = ["cat", "traffic light", "it's"]
WANTED = [{"cat", "it's"}, {"traffic light"}, {"it's"}, {"cat"}]


def drawn(k: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(k).integers(0, 256, (6, 5 + k, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


PHOTOS = [drawn(0), drawn(1, "PNG"), drawn(2), drawn(3)]
RECORDS = [{"bytes": data, "path": f"../{k}.jpg"} for k, data in enumerate(PHOTOS)]
NUMBERS = [[CLASSES.index(name) for name in sorted(own)] for own in WANTED]
HOT = [[int(k in own) for k in range(3)] for own in NUMBERS]


def dataset(tags: list[Any], feature: Any, column: str = "labels") -> Any:
    features = hf.Features({"image": hf.Image(), column: feature, "width": hf.Value("int64")})
    rows = {"image": RECORDS, column: tags, "width": [5, 6, 7, 8]}
    return hf.Dataset.from_dict(rows, features=features)


def lists(inner: Any) -> Any:
    return hf.Sequence(inner)


def names_in(folder: Path) -> list[set[str]]:
    read = TaggedFolder(folder, folder / "labels.csv")
    assert [read.image_path(i).read_bytes() for i in range(len(read))] == PHOTOS
    assert not read.check()
    return [{read.classes[k] for k in row.nonzero()[:, 0]} for row in read.tags]


WAYS: dict[str, Callable[[], tuple[Any, list[str] | None]]] = {
    "numbers": lambda: (dataset(NUMBERS, lists(hf.ClassLabel(names=CLASSES))), None),
    "column": lambda: (dataset(NUMBERS, lists(hf.ClassLabel(names=CLASSES)), "what"), None),
    "text": lambda: (dataset([sorted(own) for own in WANTED], lists(hf.Value("string"))), None),
    "bare": lambda: (dataset(NUMBERS, lists(hf.Value("int64"))), CLASSES),
    "hot": lambda: (dataset(HOT, lists(hf.Value("int8"))), CLASSES),
    "hot class labels": lambda: (dataset(HOT, lists(hf.ClassLabel(names=CLASSES))), None),
    "bool": lambda: (
        dataset([[bool(k) for k in own] for own in HOT], lists(hf.Value("bool"))),
        CLASSES,
    ),
}


@pytest.mark.parametrize("place", ["disk", "parquet"])
@pytest.mark.parametrize("way", WAYS)
def test_each_type_of_tags(tmp_path: Path, way: str, place: str) -> None:
    made, classes = WAYS[way]()
    source = tmp_path / "source"
    if place == "disk":
        made.save_to_disk(source)
    else:
        source.mkdir()
        made.to_parquet(source / "train-00000-of-00001.parquet")
    unpack(source, tmp_path / "photos", classes=classes)
    assert names_in(tmp_path / "photos") == WANTED


def test_one_class_a_photo_with_unlabelled_ones(tmp_path: Path) -> None:
    dataset([0, 2, -1, None], hf.ClassLabel(names=CLASSES), "label").save_to_disk(tmp_path / "a")
    done = unpack(tmp_path / "a", tmp_path / "photos")
    assert done.photos == 4 and done.classes == ("cat", "it's")
    rows = (tmp_path / "photos" / "labels.csv").read_text().splitlines()
    assert rows[3:] == ["000002.jpg,[],2.jpg", "000003.jpg,[],3.jpg"]


def test_lists_of_class_labels_are_numbers_of_classes(tmp_path: Path) -> None:
    both = [[0, 1], [1, 0], [0, 1], [1, 0]]  # which look like a 0 or 1 for each of two classes
    dataset(both, lists(hf.ClassLabel(names=["cat", "dog"]))).save_to_disk(tmp_path / "a")
    unpack(tmp_path / "a", tmp_path / "photos")
    assert names_in(tmp_path / "photos") == [{"cat", "dog"}] * 4


def test_parquet_without_the_library_and_in_parts(tmp_path: Path) -> None:
    """As pandas or the Hub write it: a struct of bytes and path, several files."""
    for part in range(2):
        own = slice(2 * part, 2 * part + 2)
        labels = [sorted(names) for names in WANTED[own]]
        table = pa.table({"photo": RECORDS[own], "tags": labels})
        path = tmp_path / "source" / "train" / f"{part:04d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    assert unpack(tmp_path / "source", tmp_path / "photos").split == "train"
    assert names_in(tmp_path / "photos") == WANTED


def test_splits_are_named(tmp_path: Path) -> None:
    made = dataset(NUMBERS, lists(hf.ClassLabel(names=CLASSES)))
    hf.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "a")
    with pytest.raises(InputError, match="several splits: name one of train, test by --split"):
        unpack(tmp_path / "a", tmp_path / "photos")
    with pytest.raises(InputError, match=r"split 'val': .* has train, test"):
        unpack(tmp_path / "a", tmp_path / "photos", "val")
    assert unpack(tmp_path / "a", tmp_path / "photos", "test").photos == 4


def test_auto_says_the_command_that_then_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = dataset(NUMBERS, lists(hf.ClassLabel(names=CLASSES)))
    made.save_to_disk(tmp_path / "a")
    made.to_parquet(tmp_path / "b.parquet")
    for source in (tmp_path / "a", tmp_path / "b.parquet"):
        with pytest.raises(InputError, match=f"unpack --source {source} --out photos"):
            recognise(source)
    out = tmp_path / "photos"
    main(["unpack", "--source", str(tmp_path / "a"), "--out", str(out)])
    assert "4 of split" in capsys.readouterr().out
    assert recognise(out) == ("folder", str(out / "labels.csv"))
    assert names_in(out) == WANTED


def test_it_goes_on_and_writes_over_nothing(tmp_path: Path) -> None:
    dataset(NUMBERS, lists(hf.ClassLabel(names=CLASSES))).save_to_disk(tmp_path / "a")
    out = tmp_path / "photos"
    unpack(tmp_path / "a", out)
    (out / "labels.csv").unlink()
    (out / "000002.jpg").unlink()
    before = (out / "000000.jpg").stat().st_mtime_ns
    unpack(tmp_path / "a", out)
    assert (out / "000000.jpg").stat().st_mtime_ns == before
    assert names_in(out) == WANTED
    (out / "000001.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"000001\.png' is there and is something else"):
        unpack(tmp_path / "a", out)
    assert (out / "000001.png").read_bytes() == b"mine"


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    def fails(made: Any, match: str, **options: Any) -> None:
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        made.save_to_disk(place)
        with pytest.raises(InputError, match=match):
            unpack(place, tmp_path / "out" / place.name, **options)
        assert not (tmp_path / "out" / place.name / "labels.csv").exists()

    numbers = dataset(NUMBERS, lists(hf.Value("int64")))
    fails(numbers, r"column 'labels', row 0: class 0 has no name; .* --classes")
    fails(numbers, r"class 2 has no name", classes=["cat", "dog"])
    fails(numbers, r"--tags what: .* has the columns image, labels, width", tags="what")
    unnamed = dataset(NUMBERS, lists(hf.Value("int64")), "sorts")
    fails(unnamed, r"which column has the tags\? none among image, sorts, width; .* --tags")
    fails(unnamed.remove_columns("image"), r"which column has the image\? none")
    text = dataset([['say "hi"']] * 4, lists(hf.Value("string")))
    fails(text, r"row 0: the class 'say \"hi\"' has a quote")
    gif = text.map(lambda row: row, features=text.features).to_dict()
    gif["image"] = [*RECORDS[:3], {"bytes": drawn(4, "GIF"), "path": "4.gif"}]
    fails(
        hf.Dataset.from_dict(gif, features=text.features),
        r"column 'image': want photos as JPEG or PNG with their bytes, got row 3 \(neither",
    )
    with pytest.raises(InputError, match="There is no data set"):
        unpack(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read as a Hugging Face data set"):
        unpack(tmp_path / "torn.parquet", tmp_path / "out")


def test_a_run_unpacks_it_once_into_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = dataset(NUMBERS, lists(hf.ClassLabel(names=CLASSES)))
    hf.DatasetDict({"train": made, "test": made.select([0, 1])}).save_to_disk(tmp_path / "a")
    out, tiny = tmp_path / "run", ["--evidence.positions", "64", "--evidence.iterations", "2"]
    command = ["run", "--data", "auto", "--root", str(tmp_path / "a"), "--out", str(out), *tiny]
    command += ["--features.size", "32", "--network.backbone", "vgg_tiny", "--network.weights"]
    command += ["TEXTURES", "--segment", "off", "--labels.refine", "none"]
    main(command)
    assert "its photos are written to" in capsys.readouterr().out
    assert len(list((out / "pgnn" / "labels").glob("*.png"))) == 4
    assert names_in(out / "photos") == WANTED
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    main(command)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    with pytest.raises(SystemExit):
        main([*command, "--split", "test"])
    assert "photos of another data set (split: 'train' there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--split", "val", "--out", str(tmp_path / "b")])
    assert "has train, test" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_killed_unpacking_of_a_run_is_gone_on_with(tmp_path: Path) -> None:
    dataset(NUMBERS, lists(hf.ClassLabel(names=CLASSES))).save_to_disk(tmp_path / "a")
    tags = unpack_once(tmp_path / "a", tmp_path / "photos", "train")
    tags.unlink()
    (tmp_path / "photos" / "000002.jpg").unlink()
    before = (tmp_path / "photos" / "000000.jpg").stat().st_mtime_ns
    assert unpack_once(tmp_path / "a", tmp_path / "photos", "train") == tags
    assert (tmp_path / "photos" / "000000.jpg").stat().st_mtime_ns == before
    assert names_in(tmp_path / "photos") == WANTED
