"""Nothing that `doctor` calls fine fails in `run`: folders with faults drawn at random."""

import csv
import io
import json
import tempfile
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from pgnn_geo.app.cli import main
from pgnn_geo.io.masks import save_mask

RUN = [
    *("--network.backbone=vgg_tiny", "--network.weights=null", "--network.freeze_stages=0"),
    *("--train.size=32", "--train.epochs=1", "--train.completion_epochs=0", "--train.workers=0"),
    *("--train.groups_per_batch=2", "--maps.size=32", "--maps.propagate=none", "--segment=off"),
    *("--recipe=trained", "--baseline=true", "--labels.refine=none"),
]
STEMS = ["a", "IMG 1", "größe", "x.y", "[b]", "n" * 180, "日本", "ü" * 60, "it's", "-v", "CON"]
CLASSES = ["cat", "dog", "Dog", "traffic light", "bär", "[/b]", "background", "3", "a/b"]


@dataclass
class File:
    """A photo that was drawn."""

    stem: str
    suffix: str
    folder: str
    mode: str
    size: tuple[int, int]
    orientation: Any
    damage: str
    tags: list[str]
    called: str
    form: str

    @property
    def name(self) -> str:
        prefix = f"{self.folder}/" if self.folder else ""
        return prefix + unicodedata.normalize(self.form, self.stem) + self.suffix

    @property
    def row(self) -> str:
        """What the table calls it."""
        bare = unicodedata.normalize("NFC", self.stem)
        path = f"{self.folder}/{bare}" if self.folder else bare
        return {
            "path": path + self.suffix,
            "id": path,
            "bare": bare + self.suffix,
            "dot": f"./{path}{self.suffix}",
            "upper": path.upper() + self.suffix.upper(),
        }[self.called]

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as it is shown."""
        return self.size[::-1] if self.orientation in (5, 6, 7, 8) else self.size


@dataclass
class Folder:
    """A folder that was drawn."""

    files: list[File]
    delimiter: str
    separator: str
    encoding: str
    strays: list[str]
    rows: str
    masks: str
    header: list[str] = field(default_factory=lambda: ["image", "labels"])


def mostly(usual: Any, *rare: Any) -> st.SearchStrategy[Any]:
    """One value in most draws, so that folders with few faults are drawn too."""
    return st.sampled_from([usual] * (12 * len(rare)) + list(rare))


FILES = st.builds(
    File,
    stem=st.sampled_from(STEMS),
    suffix=st.sampled_from([".jpg", ".jpeg", ".png", ".jfif", ".JPG", ".PNG"]),
    folder=st.sampled_from(["", "", "trip", "trip/far", "linked"]),
    mode=st.sampled_from(["RGB", "RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16"]),
    size=st.sampled_from([(40, 30), (30, 40), (1, 1), (300, 1), (2, 90), (33, 32)]),
    orientation=st.sampled_from([None, 1, 6, 3, 8, 9, "broken"]),
    damage=mostly("none", "cut", "webp", "empty"),
    tags=st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3),
    called=st.sampled_from(["path", "id", "path", "dot", "bare", "upper"]),
    form=st.sampled_from(["NFC", "NFD"]),
)
FOLDERS = st.builds(
    Folder,
    files=st.lists(FILES, min_size=3, max_size=5, unique_by=lambda f: (f.folder, f.stem)),
    delimiter=st.sampled_from([",", ";", "\t"]),
    separator=st.sampled_from([" ", ";", ", ", "|", "list"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    strays=st.lists(st.sampled_from(["copy", "hidden", "webp", "notes", "labels"]), unique=True),
    rows=mostly("all", "one missing", "one more", "one twice", "untagged"),
    masks=mostly("none", "some", "wrong size"),
)


@dataclass
class Voc:
    """A folder in VOC layout that was drawn."""

    files: list[File]
    tags: str
    ids: str
    classes: str
    masks: str
    encoding: str


VOCS = st.builds(
    Voc,
    files=st.lists(FILES, min_size=3, max_size=5, unique_by=lambda f: f.stem),
    tags=mostly("csv", "annotations", "annotations", "masks", "one missing", "broken xml"),
    ids=mostly("plain", "lists of SBD", "spaces", "one more", "one twice", "empty"),
    classes=mostly("all", "background", "one missing", "one twice", "none"),
    masks=mostly("none", "some", "some", "wrong size", "wrong label"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)


def draw_photo(path: Path, file: File) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = file.size
    seed = sum(map(ord, file.name))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    png = file.suffix.lower() == ".png"
    if file.mode == "I;16" and png:
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 16)
    elif png != (file.mode == "CMYK") and (png or file.mode in ("RGB", "L", "CMYK")):
        image = image.convert(file.mode)
    exif = Image.Exif()
    if isinstance(file.orientation, int):
        exif[0x0112] = file.orientation
    block = b"Exif\0\0II*\0\xff\xff\xff\xff" if file.orientation == "broken" else exif.tobytes()
    image.save(path, format="PNG" if png else "JPEG", exif=block)
    data = path.read_bytes()
    if file.damage == "cut":
        path.write_bytes(data[: len(data) - len(data) // 3])
    elif file.damage == "webp":
        path.write_bytes(b"RIFF\x24\0\0\0WEBPVP8 ")
    elif file.damage == "empty":
        path.write_bytes(b"")


def write_rows(path: Path, folder: Folder) -> None:
    def cell(tags: list[str]) -> str:
        return repr(tags) if folder.separator == "list" else folder.separator.join(tags)

    rows = [(file.row, cell(file.tags)) for file in folder.files]
    changed = {
        "one missing": rows[1:],
        "one more": [*rows, ("nowhere.jpg", "cat")],
        "one twice": [*rows, rows[0]],
        "untagged": [(rows[0][0], ""), *rows[1:]],
    }
    text = io.StringIO()
    writer = csv.writer(text, delimiter=folder.delimiter)
    writer.writerows([folder.header, *changed.get(folder.rows, rows)])
    path.write_bytes(text.getvalue().encode(folder.encoding))


def build(root: Path, folder: Folder) -> list[str]:
    """Write the folder and return the options that it is for."""
    photos = root / "photos"
    (root / "disk").mkdir()
    photos.mkdir()
    (photos / "linked").symlink_to(root / "disk")
    for file in folder.files:
        draw_photo(photos / file.name, file)
    write_rows(photos / "labels.csv", folder)
    first = folder.files[0]
    for stray in folder.strays:
        name = {
            "copy": f".ipynb_checkpoints/{first.stem}-checkpoint.jpg",
            "hidden": "._a.jpg",
            "webp": "other.webp",
            "notes": "notes.txt",
            "labels": f"{first.folder or '.'}/truth/{Path(first.name).stem}.png",
        }[stray]
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if stray == "labels":
            save_mask(path, np.zeros((3, 4), dtype=np.uint8))
        else:
            path.write_bytes(b"no photo")
    options = ["--data=folder", f"--root={photos}"]
    if folder.masks != "none":
        width, height = first.upright
        size = (height, width) if folder.masks == "some" else (height + 1, width)
        path = photos / "masks" / first.name
        save_mask(path.with_name(Path(first.name).stem + ".png"), np.zeros(size, dtype=np.uint8))
        options.append(f"--masks={photos / 'masks'}")
    return options


def voc_name(file: File) -> str:
    """The file in JPEGImages, which has no folders."""
    return unicodedata.normalize(file.form, file.stem) + file.suffix


def build_voc(root: Path, voc: Voc) -> list[str]:
    """Write the folder and return the options that it is for."""
    place = root / "VOCdevkit" / "VOC2012"
    lists = place / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    names = [name for name in CLASSES if name != "background"]
    own = [[name for name in file.tags if name in names] for file in voc.files]
    ids = [unicodedata.normalize("NFC", file.stem) for file in voc.files]
    for file in voc.files:
        draw_photo(place / "JPEGImages" / voc_name(file), file)
    listed = {
        "lists of SBD": [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in ids],
        "spaces": [f"  {i}\t" for i in ids],
        "one more": [*ids, "nowhere"],
        "one twice": [*ids, ids[0]],
        "empty": [],
    }.get(voc.ids, ids)
    (lists / "train.txt").write_bytes("\r\n".join(listed).encode(voc.encoding))
    kept = {"background": ["background", *names], "one missing": names[1:], "one twice": names * 2}
    if voc.classes != "none":
        text = "\n".join(kept.get(voc.classes, names))
        (place / "classes.txt").write_bytes(text.encode(voc.encoding))
    if voc.tags in ("annotations", "broken xml"):
        for image_id, tags in zip(ids, own, strict=True):
            objects = "".join(f"<object><name>{name}</name></object>" for name in tags)
            text = f"<annotation>{objects}</annotation>"
            path = place / "Annotations" / f"{image_id}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text[:-4] if voc.tags == "broken xml" else text, encoding="utf-8")
    elif voc.tags != "masks":
        rows = list(zip(ids, map(repr, own), strict=True))[voc.tags == "one missing" :]
        with open(place / "image_labels.csv", "w", encoding=voc.encoding, newline="") as handle:
            csv.writer(handle).writerows([("image", "labels"), *rows])
    for k, (image_id, tags) in enumerate(zip(ids, own, strict=True)):
        if voc.tags == "masks" or (k == 0 and voc.masks != "none"):
            width, height = voc.files[k].size
            wrong = k == 0 and voc.masks == "wrong size"
            mask = np.zeros((height + wrong, width), dtype=np.uint8)
            values = [names.index(name) + 1 for name in tags]
            mask.flat[: len(values)] = values[: mask.size]
            mask.flat[-1] = 200 if k == 0 and voc.masks == "wrong label" else mask.flat[-1]
            save_mask(place / "SegmentationClass" / f"{image_id}.png", mask)
    return ["--data=auto", f"--root={root}", "--split=train"]


def called(*args: str) -> tuple[int, str]:
    """Exit status of a command, and what it printed; errors that are not for people get out."""
    text, status = io.StringIO(), 0
    with redirect_stdout(text), redirect_stderr(text):
        try:
            main(list(args))
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, text.getvalue()


def check(folder: Folder | Voc) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root, out = Path(scratch), Path(scratch, "run")
        if isinstance(folder, Voc):
            options, masked = build_voc(root, folder), folder.masks != "none"
            sizes = {unicodedata.normalize("NFC", f.stem): f.size for f in folder.files}
            masked = masked or folder.tags == "masks"
        else:
            options, masked = build(root, folder), folder.masks != "none"
            sizes = {Path(f.name).with_suffix("").as_posix(): f.upright for f in folder.files}
        sick, said = called("doctor", *options, *RUN[:2])
        status, printed = called("run", *options, f"--out={out}", *RUN)
        event("doctor: problems" if sick else "doctor: fine")
        if sick:
            assert sick == 1 and "problem" in said, said
            assert status == 2 and "pgnn-geo: error:" in printed, printed
            assert not (out / "cam").exists()
            return
        assert status == 0, printed
        for model in ("cam", "pgnn"):
            labels = out / model / "labels"
            found = {
                p.relative_to(labels).as_posix().removesuffix(".png"): p
                for p in labels.rglob("*.png")
            }
            assert found.keys() == sizes.keys()
            for name, size in sizes.items():
                with Image.open(found[name]) as image:
                    assert image.size == size
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["images"] == len(folder.files)
        assert ("cam" in metrics) == masked


def profile(examples: int, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=slow, database=None, **options
    )


@pytest.mark.filterwarnings("ignore")
@profile(8, derandomize=True)
@given(FOLDERS)
def test_what_doctor_calls_fine_runs(folder: Folder) -> None:
    check(folder)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore")
@profile(100)
@given(FOLDERS)
def test_what_doctor_calls_fine_runs_many_times(folder: Folder) -> None:
    check(folder)


@pytest.mark.filterwarnings("ignore")
@profile(8, derandomize=True)
@given(VOCS)
def test_what_doctor_calls_fine_runs_in_voc_layout(voc: Voc) -> None:
    check(voc)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore")
@profile(100)
@given(VOCS)
def test_what_doctor_calls_fine_runs_in_voc_layout_many_times(voc: Voc) -> None:
    check(voc)
