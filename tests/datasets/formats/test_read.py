"""Tags in files as other tools write them, and what `--data auto` makes of a folder."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgnn_geo.app.cli import main
from pgnn_geo.app.config import DataConfig
from pgnn_geo.datasets import TaggedFolder
from pgnn_geo.datasets.formats import FORMATS, read_tags, recognise
from pgnn_geo.datasets.photos import find_photos, read_photo_tags
from pgnn_geo.errors import InputError, InputNote

NAMES = ["one.jpg", "trip/two.png", "trip/far/three.jpg"]
WANTED = {"one.jpg": ("cat", "dog"), "trip/two.png": ("dog",), "trip/far/three.jpg": ("cat",)}

pytestmark = pytest.mark.filterwarnings("ignore::pgnn_geo.errors.InputNote")


def coco(prefix: str = "") -> Any:
    """As CVAT and Roboflow export it; records without area, boxes only, crowds."""
    images = [{"id": 9 - k, "file_name": prefix + name} for k, name in enumerate(NAMES)]
    pairs = [(9, 4), (9, 7), (9, 4), (8, 7), (7, 4)]
    records = [{"id": k, "image_id": i, "category_id": c} for k, (i, c) in enumerate(pairs)]
    records[0]["bbox"] = [0, 0, 1, 1]  # type: ignore[assignment]
    records[1] |= {"iscrowd": 1}
    categories = [{"id": 4, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 1, "name": "cow"}]
    return {"images": images, "annotations": records, "categories": categories}


def datumaro() -> Any:
    labels = [{"name": "background"}, {"name": "cat"}, {"name": "dog"}]
    owned = [[1, 2, 1, None], [2], [1, 0]]
    items = [
        {
            "id": name.rpartition(".")[0],
            "image": {"path": name},
            "annotations": [{"type": "label", "label_id": label} for label in own],
        }
        for name, own in zip(NAMES, owned, strict=True)
    ]
    del items[1]["image"]
    items[2]["image"] = None  # what is written of a photo that is not at hand
    items[2]["id"] = NAMES[2]
    return {"info": {}, "categories": {"label": {"labels": labels}}, "items": items}


def label_studio() -> Any:
    addresses = [
        "/data/upload/3/0a1b2c3d-one.jpg",
        "/data/local-files/?d=photos/trip/two.png",
        "s3://bucket/some%20where/trip/far/three.jpg",
    ]
    results: list[list[Any]] = [
        [{"type": "choices", "value": {"choices": ["cat", "dog"]}}],
        [{"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["dog"]}}],
        [
            {"type": "brushlabels", "value": {"rle": [1, 2], "brushlabels": ["cat"]}},
            {"type": "taxonomy", "value": {"taxonomy": [["animal", "cat"]]}},
        ],
    ]
    tasks = [
        {"id": k, "data": {"image": address}, "annotations": [{"result": result}]}
        for k, (address, result) in enumerate(zip(addresses, results, strict=True))
    ]
    wrong = {"was_cancelled": True, "result": [{"value": {"choices": ["cow"]}}]}
    tasks[0]["annotations"].append(wrong)  # type: ignore[attr-defined]
    return tasks


def label_studio_min() -> Any:
    """As the converter writes it: one choice is a text, several are a list, regions are lists."""
    own: list[dict[str, Any]] = [
        {"image": "/data/upload/3/0a1b2c3d-one.jpg", "what": {"choices": ["cat", "dog"]}},
        {"image": "/data/local-files/?d=photos/trip/two.png", "what": "dog", "by": "me"},
        {"image": "s3://b/far/three.jpg", "box": [{"x": 1, "rectanglelabels": ["cat"]}]},
    ]
    return [
        {"id": k, **fields, "annotator": 1, "annotation_id": 9 - k, "lead_time": 1.5}
        for k, fields in enumerate(own)
    ]


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels><label><name>cat</name></label></labels>
</task></meta>
<image id="0" name="one.jpg" width="36" height="24"><tag label="cat" source="manual"/>
<polygon label="dog" points="1,1;2,2;3,1"/></image>
<image id="1" name="trip/two.png" width="36" height="24"><box label="dog" xtl="1"/></image>
<image id="2" name="trip/far/three.jpg" width="36" height="24"><mask label="cat" rle="1"/></image>
</annotations>"""

FILES: dict[str, tuple[str, str]] = {
    "coco": ("a.json", json.dumps(coco())),
    # github.com/cvat-ai/cvat/issues/298
    "coco with ids as text": ("t.json", json.dumps(coco()).replace('_id": 9', '_id": "9"')),
    "coco in other folders": ("b.json", json.dumps(coco("dataset/images/"))),
    "coco of Windows": ("c.json", json.dumps(coco("C:\\x\\")).replace("/", "\\\\")),
    "datumaro": ("default.json", json.dumps(datumaro())),
    "label_studio": ("project.json", json.dumps(label_studio())),
    "label_studio_min": ("min.json", json.dumps(label_studio_min())),
    "cvat": ("annotations.xml", CVAT),
    "columns": ("d.csv", "filename,cat,dog,cow\none.jpg,1,1,0\ntwo.png,0,1,0\nthree,1,0,0\n"),
    "columns of Roboflow": (
        "_classes.csv",
        "filename, cat, dog\none.jpg, 1, 1\ntrip/two.png, 0, 1\ntrip/far/three.jpg, 1, 0\n",
    ),
    "columns of pandas": (
        "e.csv",
        "dog;image;cat\nTrue;one.jpg;1.0\nTrue;two.png;0.0\nFalse;three;1.0\n",
    ),
    "csv": ("f.csv", "image,labels\none,cat dog\ntwo.png,dog\nthree,cat\n"),
}


@pytest.fixture
def photos(tmp_path: Path, write_photo: Callable[..., None]) -> Path:
    root = tmp_path / "photos"
    for seed, name in enumerate(NAMES):
        write_photo(root / name, seed=seed)
    return root


UNLABELLED: dict[str, Any] = {
    "no annotations": {},
    "null": {"annotations": None},
    "an empty list": {"annotations": []},
    "all cancelled": {"annotations": [{"was_cancelled": True, "result": [{"value": {}}]}]},
    "an empty result": {"annotations": [{"result": []}]},
    "a null result": {"annotations": [{"result": None}]},
    "only predictions": {"predictions": [{"result": [{"value": {"choices": ["cow"]}}]}]},
    "a relation of regions": {"annotations": [{"result": [{"type": "relation", "to_id": "a"}]}]},
}


@pytest.mark.parametrize("how", UNLABELLED)
def test_a_task_of_label_studio_that_nobody_has_labelled(photos: Path, how: str) -> None:
    tasks = label_studio()
    tasks[1] = {key: value for key, value in tasks[1].items() if key != "annotations"}
    tasks[1] |= UNLABELLED[how]
    path = photos.parent / "project.json"
    path.write_text(json.dumps(tasks))
    assert read_tags(path, photos, dict.fromkeys(NAMES)).tags == {**WANTED, NAMES[1]: ()}
    assert TaggedFolder(photos, path).check() == ["image trip/two has no tags"]
    only = [{"id": 1, "data": tasks[1]["data"], **UNLABELLED[how]}]
    path.write_text(json.dumps(only))
    with pytest.raises(InputError, match=r"project\.json': no row for photos|has no labels"):
        TaggedFolder(photos, path)


def test_several_annotators_of_label_studio(photos: Path) -> None:
    """A photo has what any of them saw."""
    tasks = label_studio()
    tasks[1]["annotations"] = [
        {"completed_by": k, "result": [{"value": {"choices": own}}]}
        for k, own in enumerate((["dog"], ["dog", "cow"], []))
    ]
    path = photos.parent / "project.json"
    path.write_text(json.dumps(tasks))
    read = read_tags(path, photos, dict.fromkeys(NAMES)).tags
    assert set(read[NAMES[1]]) == {"dog", "cow"}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_tools(photos: Path, tmp_path: Path, name: str) -> None:
    file, text = FILES[name]
    path = tmp_path / file
    path.write_text(text, encoding="utf-8-sig")
    read = read_tags(path, photos, dict.fromkeys(NAMES))
    assert {photo: tuple(sorted(own)) for photo, own in read.tags.items()} == WANTED
    assert read.source == name.split(" ")[0] and not read.copies
    dataset = TaggedFolder(photos, path)
    assert dataset.classes == ("cat", "dog") and dataset.check() == []
    assert dataset.tag_source == read.source
    tags = {f"{i}": row for i, row in zip(dataset.image_ids, dataset.tags.tolist(), strict=True)}
    assert tags == {"one": [1, 1], "trip/two": [0, 1], "trip/far/three": [1, 0]}
    root, found = find_photos([photos])  # as `predict --tags` reads them
    assert read_photo_tags(path, root, found, ("cat", "dog")).tolist() == [[1, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize("name", FILES)
def test_auto_says_what_it_recognised(photos: Path, name: str) -> None:
    file, text = FILES[name]
    (photos / "annotations").mkdir()
    path = photos / ("annotations" if name == "datumaro" else "") / file
    path.write_text(text)
    (photos / "readme.json").write_text('{"about": "nothing"}')
    with pytest.warns(InputNote, match=rf"tags are read from '{path}'.*--tags {path}"):
        config = DataConfig(data="auto", root=str(photos))
    assert (config.data, config.tags) == ("folder", str(path))
    assert config.build().classes == ("cat", "dog")


def test_auto_on_other_folders(photos: Path, voc_tree: Path, tmp_path: Path) -> None:
    for root in (voc_tree, voc_tree.parent, voc_tree.parent.parent):
        assert recognise(root) == ("voc", "auto")
    with pytest.raises(InputError, match=r"neither VOC layout .*COCO JSON.*name one by --tags"):
        recognise(photos)  # there is a photo beside the folders
    (photos / "one.jpg").unlink()
    with pytest.raises(InputError, match="neither VOC layout"):  # nor is one folder a class
        recognise(photos)
    (photos / "other").mkdir()
    (photos / "trip" / "far" / "three.jpg").rename(photos / "other" / "three.jpg")
    with pytest.warns(InputNote, match=r"names of 2 folders \(--data folder --tags folders\)"):
        assert recognise(photos) == ("folder", "folders")
    (photos / "a.csv").write_text(FILES["columns"][1])
    (photos / "b.xml").write_text(CVAT)
    with pytest.raises(InputError, match=r"several files of tags: '.*a\.csv', '.*b\.xml'"):
        recognise(photos)
    (photos / "labels.csv").write_text(FILES["csv"][1])
    assert recognise(photos) == ("folder", str(photos / "labels.csv"))
    with pytest.raises(InputError, match="is not a folder"):
        recognise(tmp_path / "nothing")


def test_auto_on_the_command_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "instances.json").write_text(FILES["coco"][1])
    network = ["--network.backbone=vgg_tiny", "--network.weights=null"]
    main(["doctor", "--data=auto", f"--root={photos}", *network])
    printed = capsys.readouterr().out
    assert "note: tags are read from" in printed and "COCO JSON" in printed
    assert "no problem found" in printed


@pytest.mark.parametrize(
    "file, text, words",
    [
        ("a.json", "{", r"a\.json' cannot be read as JSON"),
        ("a.json", '{"shapes": []}', r"a\.json' holds tags in no known format: want one of COCO"),
        (
            "a.json",
            json.dumps({**coco(), "categories": []}),
            r"is damaged, read as COCO.*category_id 4; want",
        ),
        (  # github.com/obss/sahi/issues/98
            "a.json",
            json.dumps(coco()).replace('"id": 8, "file', '"id": 9, "file'),
            "image id 9 is that of one.jpg and of trip/two.png",
        ),
        (
            "a.json",
            '[{"data": {"image": "x"}, "annotations": [3]}]',
            "Label Studio JSON: it is built otherwise",
        ),
        (
            "a.json",
            '[{"image": "one.jpg", "what": "cat", "by": "me", "annotation_id": 1}]',
            "any of the fields what, by may be the class; export JSON in place",
        ),
        ("a.xml", "<annotations>", r"a\.xml' cannot be read as XML"),
        ("a.xml", "<annotations/>", "read as CVAT.*export 'CVAT for images'"),
        ("a.xml", "<other/>", "no known format"),
        ("a.csv", "file,cat\none,1\ntwo,2\n", r"row 3, column 'cat' holds '2'; want 0 or 1"),
        ("a.csv", "file,cat\none,1\none,1\n", "one has more than one row"),
        ("a.csv", "file,cat\none,1\none\n", "row 3 has 1 cells, the header 2"),
        ("a.csv", "file,what\none,cat\n", "first line must have the columns image,labels"),
        ("a.csv", "photo;what\none;cat\n", "for each class; got 'photo;what'"),
        (
            "a.json",
            json.dumps({**coco(), "annotations": [{"id": 1, "image_id": 8, "caption": "a cat"}]}),
            "COCO JSON: a record has no 'category_id'; export it again, or name another file",
        ),
        (
            "a.json",
            '{"categories": {"label": {"labels": []}}, "items": [{"id": "one", "annotations": '
            '[{"label_id": 0}]}]}',
            "Datumaro JSON: a record has the number of a class that is not listed",
        ),
    ],
)
def test_one_clear_error(photos: Path, tmp_path: Path, file: str, text: str, words: str) -> None:
    path = tmp_path / file
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_tags(path, photos, dict.fromkeys(NAMES))


def test_names_that_fit_several_photos(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco()).replace("trip/two.png", "other/two.png"))
    names = [*NAMES, "day/two.png"]
    with pytest.raises(InputError, match=r"other/two.png \(day/two.png or trip/two.png\)"):
        read_tags(path, photos, dict.fromkeys(names))


def test_each_format_is_one_entry() -> None:
    assert len({kind.name for kind in FORMATS}) == len(FORMATS)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # by the clock: others may run
@pytest.mark.parametrize("name", ["coco", "csv", "folders"])
def test_ten_thousand_files_in_under_a_minute(
    tmp_path: Path, write_photo: Callable[..., None], name: str
) -> None:
    root = tmp_path / "photos"
    write_photo(root / "c0" / "0.jpg")
    data = (root / "c0" / "0.jpg").read_bytes()
    names = [f"c{k % 20}/{k}.jpg" for k in range(10_000)]
    for k, photo in enumerate(names):
        (root / photo).parent.mkdir(exist_ok=True)
        (root / photo).write_bytes(data + k.to_bytes(4))  # all differ behind the picture
    source: Path | str = "folders"
    if name == "coco":
        images = [{"id": k, "file_name": photo} for k, photo in enumerate(names)]
        records = [{"image_id": k % 10_000, "category_id": k % 7} for k in range(60_000)]
        categories = [{"id": k, "name": f"name{k}"} for k in range(7)]
        source = tmp_path / "a.json"
        source.write_text(
            json.dumps({"images": images, "annotations": records, "categories": categories})
        )
    elif name == "csv":
        source = tmp_path / "a.csv"
        source.write_text("image,labels\n" + "".join(f"{photo},cat dog\n" for photo in names))
    start = time.process_time()
    dataset = TaggedFolder(root, source)
    seconds = time.process_time() - start
    assert len(dataset) == 10_000 and seconds < 60, seconds


def test_single_choices_of_json_min(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    owned = {"one.jpg": "cat", "two.png": "two words"}
    records = [
        {"image": photo, "what": name, "annotation_id": k}
        for k, (photo, name) in enumerate(owned.items())
    ]
    records.append({"image": "one.jpg", "what": "dog", "annotation_id": 7})  # of another person
    path.write_text(json.dumps(records))
    tags = read_tags(path, photos, dict.fromkeys(NAMES)).tags
    assert tags == {"one.jpg": ("cat", "dog"), "trip/two.png": ("two words",)}


def test_text_lists_of_imagenet(photos: Path, write_photo: Callable[..., None]) -> None:
    write_photo(photos / "trip" / "größe zwei.jpg")
    (photos / "synsets.txt").write_text("cat\ntwo words\ndog\n", encoding="utf-8")
    path = photos / "default.txt"
    rows = ["one.jpg 0 2", '"trip/größe zwei".jpg 1', "x/two.png 2", "", "trip/far/three 0"]
    path.write_text("\n".join(rows), encoding="utf-8")
    with pytest.warns(InputNote, match="default.txt', ImageNet text list"):
        config = DataConfig(data="auto", root=str(photos))
    dataset = config.build()
    assert dataset.classes == ("cat", "dog", "two words") and dataset.check() == []
    tags = dict(zip(dataset.image_ids, dataset.tags.tolist(), strict=True))
    assert tags == {
        "one": [1, 1, 0],
        "trip/größe zwei": [0, 0, 1],
        "trip/two": [0, 1, 0],
        "trip/far/three": [1, 0, 0],
    }
    for line, words in (("one.jpg 3", "line 1 has '3'.*below 3"), ("my one.jpg 0", "'one.jpg'")):
        path.write_text(line)
        with pytest.raises(InputError, match=words):
            read_tags(path, photos, dict.fromkeys(NAMES))


def test_text_lists_that_datumaro_writes(photos: Path, tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="datumaro is not installed (extra interop)")
    label = datumaro.components.annotation.Label
    items = [
        datumaro.components.dataset_base.DatasetItem(
            id=Path(name).with_suffix("").as_posix(),
            media=datumaro.components.media.Image.from_file(path=str(photos / name)),
            annotations=[label(("cat", "dog").index(own)) for own in WANTED[name]],
        )
        for name in NAMES
    ]
    dataset = datumaro.Dataset.from_iterable(items, categories=["cat", "dog"])
    dataset.export(str(tmp_path / "out"), "imagenet_txt", save_media=False)
    read = read_tags(tmp_path / "out" / "default.txt", photos, dict.fromkeys(NAMES))
    assert {photo: tuple(sorted(own)) for photo, own in read.tags.items()} == WANTED
