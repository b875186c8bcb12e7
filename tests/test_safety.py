"""Files from elsewhere: nothing in them is run, images have a bound, no name leads out."""

import ast
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pgnn_geo
from pgnn_geo.app.cli import main
from pgnn_geo.app.labelling import label
from pgnn_geo.boxes import AuxiliaryBoxes, BoxFile
from pgnn_geo.boxes.model_file import load_detector
from pgnn_geo.datasets import Shapes, TaggedDataset, TaggedFolder, load_photo
from pgnn_geo.errors import InputError
from pgnn_geo.features import FeatureBank, FrozenFeatureConfig
from pgnn_geo.inference.predict import predict_folder
from pgnn_geo.inference.segmenter import Segmenter
from pgnn_geo.io.checkpoint import load_attention_model, save_attention_model
from pgnn_geo.io.export import read_coco, write_voc_submission
from pgnn_geo.io.files import inside
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import load_mask, save_mask
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.labels.labeller import BackboneSource, Labeller
from pgnn_geo.nn import PGNN, DeepLabV2
from pgnn_geo.nn.backbones import build_backbone
from pgnn_geo.training.fitting import last_checkpoint

PACKAGE = Path(pgnn_geo.__file__).parent

#: Calls that unpickle or run what they read, and the argument by which they do not.
READERS = {
    "torch.load": ("weights_only", True),
    "torch.hub.load_state_dict_from_url": ("weights_only", True),
    "entry.get_state_dict": ("weights_only", True),
    "models.load_state_dict_from_hf": ("weights_only", True),
    "trainer.fit": ("weights_only", True),
    "np.load": ("allow_pickle", False),
}
#: What is not called at all.
NEVER = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "yaml.load"),
    *("yaml.unsafe_load", "torch.hub.load", "shutil.unpack_archive", "marshal.loads"),
}


def calls() -> list[tuple[str, ast.Call]]:
    """Every call in the package, and where it is."""
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_every_reader_is_told_to_run_nothing() -> None:
    found: set[str] = set()
    for where, call in calls():
        name = ast.unparse(call.func)
        named = {each.arg: ast.unparse(each.value) for each in call.keywords}
        assert name not in NEVER and not name.endswith("extractall"), where
        if name in READERS:
            found.add(name)
            argument, value = READERS[name]
            assert named.get(argument) == str(value), f"{where}: {name} without {argument}={value}"
        if name == "Image.open":
            assert "formats" in named, f"{where}: any format is opened"
    assert found == READERS.keys()  # a reader of another name would not be looked at


class Program:
    """What is run where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def checkpoint(folder: Path) -> Path:
    """The place of a training's checkpoint."""
    (folder / "checkpoints").mkdir()
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.pt", load_attention_model),
        ("detector.pt", load_detector),
        ("weights.pth", lambda path: build_backbone("vgg_tiny", str(path))),
        ("last.ckpt", lambda path: last_checkpoint(path.parent.parent)),
    ],
)
def test_a_program_in_a_pickle_is_not_run(
    name: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = checkpoint(tmp_path) if name == "last.ckpt" else tmp_path / name
    torch.save({"format": "x", "state_dict": Program(tmp_path / "proof")}, path)
    with pytest.raises(InputError, match=name):
        read(path)
    assert not (tmp_path / "proof").exists()
    torch.load(path, weights_only=False)  # it would have been
    assert (tmp_path / "proof").is_dir()


def test_a_program_in_an_array_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "bank.npy"
    np.save(path, np.array([Program(tmp_path / "proof")], dtype=object), allow_pickle=True)
    path.with_suffix(".json").write_text("{}")
    rows = torch.ones(2, 1, 1, 1)
    made = FeatureBank.build(path, lambda first: rows[first:].split(1), 2, {})
    assert torch.equal(made[[0, 1]], rows) and not (tmp_path / "proof").exists()
    assert pickle.dumps(made)  # while a bank itself can be sent to a loader's process


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_of(width: int, height: int) -> bytes:
    """A PNG of 70 bytes that says it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_a_small_file_of_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(60_000, 60_000))
    for read in (load_photo, load_mask):
        with pytest.raises(InputError, match="60000 x 60000 pixels, more than the bound of 178956"):
            read(path)
    save_mask(path, np.zeros((30, 40), dtype=np.uint8))
    assert load_mask(path, 1200).shape == (30, 40)
    with pytest.raises(InputError, match="40 x 30 pixels, more than the bound of 1199"):
        load_mask(path, 1199)


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_small_file_of_much_text_is_not_unpacked(kind: bytes, tmp_path: Path) -> None:
    save_mask(tmp_path / "mask.png", np.zeros((30, 40), dtype=np.uint8))
    data = (tmp_path / "mask.png").read_bytes()
    text = b"x\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + zlib.compress(bytes(2**24), 9)
    assert len(text) < 2**15
    (tmp_path / "mask.png").write_bytes(data[:33] + chunk(kind, text) + data[33:])  # after IHDR
    for read in (load_photo, load_mask):
        with pytest.raises(InputError, match=r"mask.png' .*too large"):
            read(tmp_path / "mask.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for read in (load_photo, load_mask):
        with pytest.raises(InputError, match=r"pipe.png' is no regular file"):
            read(tmp_path / "pipe.png")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM", "ICO", "WEBP"])
def test_other_formats_are_not_opened_whatever_they_are_called(kind: str, tmp_path: Path) -> None:
    for read, name in ((load_photo, "photo.jpg"), (load_mask, "mask.png")):
        Image.new("L", (16, 16)).save(tmp_path / name, format=kind)
        with pytest.raises(InputError, match=f"{name}' cannot be"):
            read(tmp_path / name)


@pytest.mark.parametrize("size", [(10**6, 10**6), (-5, -5)])
def test_sizes_in_coco_files_are_bounded(size: tuple[int, int], tmp_path: Path) -> None:
    path, (height, width) = tmp_path / "a.json", size
    whole = {"size": [height, width], "counts": "0"}
    own = {"size": [10, 10], "counts": "PS3"}
    for image, segmentation in ((size, whole), ((10, 10), whole), (size, own)):
        document = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": image[0], "width": image[1]}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}
            ],
            "categories": [{"id": 1, "name": "cat"}],
        }
        path.write_text(json.dumps(document))
        with pytest.raises(InputError, match=r"pixels; want 1 to|its size is"):
            list(read_coco(path, ["cat"]))


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", "..", "", "a\0b"])
def test_ids_that_leave_their_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no path below a folder"):
        TaggedDataset([name], [tmp_path / "a.jpg"], ["cat"], None)
    if name in ("..", ""):  # with the ending of a file it is a name like any other
        return
    with pytest.raises(InputError, match="no path below a folder"):
        write_voc_submission(tmp_path / "out", [(name, np.zeros((2, 2), dtype=int))], ["cat"])
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("name", ["../secret.png", "{0}/secret.png", "a/../../secret.png"])
def test_photos_of_drawn_boxes_lie_in_their_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    image = {"id": 1, "file_name": name.format(tmp_path), "width": 8, "height": 8}
    document = {"images": [image], "annotations": [{"image_id": 1, "bbox": [1, 1, 4, 4]}]}
    (tmp_path / "drawn.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="outside the folder"):
        AuxiliaryBoxes(tmp_path / "drawn.json", tmp_path / "photos")


@pytest.mark.parametrize("row", ["../{0},cat", "{1}/{0},cat", "a/../../{0},cat"])
@pytest.mark.parametrize("kind", ["csv", "coco"])
def test_rows_that_lead_out_of_the_folder(row: str, kind: str, tmp_path: Path) -> None:
    photos, tags = tmp_path / "photos", tmp_path / f"tags.{'csv' if kind == 'csv' else 'json'}"
    (photos / "a").mkdir(parents=True)
    for place in (photos / "in.png", tmp_path / "secret.png"):
        Image.new("RGB", (8, 8)).save(place)
    name = row.format("secret.png", tmp_path).split(",")[0]
    if kind == "csv":
        tags.write_text(f"image,labels\nin.png,cat\n{name},cat\n")
    else:
        images = [{"id": i, "file_name": n} for i, n in enumerate(("in.png", name))]
        marks = [{"image_id": i, "category_id": 1} for i in (0, 1)]
        document = {"images": images, "annotations": marks}
        tags.write_text(json.dumps({**document, "categories": [{"id": 1, "name": "cat"}]}))
    try:
        read = TaggedFolder(photos, tags)
    except InputError as error:
        assert "outside the folder" in str(error)
    else:  # other tools know other folders: the name alone counts, and is that of no photo here
        paths = [read.image_path(i).resolve() for i in range(len(read))]
        assert all(path.is_relative_to(photos.resolve()) for path in paths)
        assert read.check() != []


def test_links_in_an_output_folder_lead_nowhere(shapes_root: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "labels", tmp_path / "elsewhere"
    photos, there = tmp_path / "photos" / "trip", elsewhere / "1.png"
    for folder in (out, elsewhere, photos):
        folder.mkdir(parents=True)
    there.write_text("mine")
    Image.effect_noise((32, 32), 40).convert("RGB").save(photos / "1.png")
    (out / "trip").symlink_to(elsewhere)
    (tmp_path / "tags.csv").write_text("image,labels\ntrip/1.png,cat\n")
    dataset = TaggedFolder(tmp_path / "photos", tmp_path / "tags.csv")
    save_attention_model(
        tmp_path / "model",
        PGNN("vgg_tiny", 1, layers=0, weights=None),
        dataset.classes,
        SupervisionLedger(),
    )
    with pytest.raises(InputError, match="where a link in"):
        label(tmp_path / "model", dataset, out)
    assert there.read_text() == "mine"
    assert inside(tmp_path, "labels/1.png") == out / "1.png"
    torch.manual_seed(0)
    net = DeepLabV2("vgg_tiny", 1, weights=None, hidden_channels=8)
    (tmp_path / "predicted" / "masks").mkdir(parents=True)
    (tmp_path / "predicted" / "masks" / "trip").symlink_to(elsewhere)
    (photos.parent / "2.png").write_bytes((photos / "1.png").read_bytes())
    there.rename(elsewhere / "mine")  # or the mask would be taken for done
    segmenter = Segmenter(net, ("cat",), SupervisionLedger(tags="drawn"), side=32)
    with pytest.raises(InputError, match="where a link in"):
        predict_folder(segmenter, [photos.parent], tmp_path / "predicted")
    (photos.parent / "2.png").unlink()
    (elsewhere / "mine").rename(there)
    assert os.listdir(elsewhere) == ["1.png"]
    # A link in place of the file itself is replaced, not followed.
    (out / "trip").unlink()
    (out / "trip").mkdir()
    (out / "trip" / "1.png").symlink_to(there)
    label(tmp_path / "model", dataset, out)
    assert there.read_text() == "mine" and load_mask(out / "trip" / "1.png").shape == (32, 32)


def test_entities_of_xml_do_not_grow(
    shapes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ['<!ENTITY a0 "cat">']
    lines += [f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10)]
    tags = tmp_path / "tags.xml"
    tags.write_text(f"<!DOCTYPE x [{''.join(lines)}]><annotations>&a9;</annotations>")
    with pytest.raises(SystemExit):
        root = f"--root={shapes_root / 'JPEGImages'}"
        main(["doctor", root, "--data=folder", f"--tags={tags}", "--network.weights=null"])
    assert "cannot be read as XML" in capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command says that ends with an error."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 2
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


#: Ten lines that stand for a billion words.
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--recipe", "network: !!python/object/apply:os.mkdir [{0}]", "constructor for the tag"),
        ("--config", "network: !!python/object/apply:os.mkdir [{0}]", "constructor for the tag"),
        (
            "--recipe",
            "network: {{class_path: os.mkdir, init_args: {{path: {0}}}}}",
            "does not accept option 'network.init_args.path'",
        ),
        ("--recipe", LAUGHS, "has the alias *a0"),
        ("--config", LAUGHS, "has the alias *a0"),
        ("--recipe", "[" * 20_000, "maximum nesting depth"),
    ],
)
def test_a_file_of_options_is_options(
    option: str,
    text: str,
    said: str,
    shapes_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "o.yaml").write_text(text.format(tmp_path / "proof"))
    command = ["run", f"--root={shapes_root}", f"--out={tmp_path / 'out'}"]
    assert said in error_of(capsys, *command, f"{option}={tmp_path / 'o.yaml'}")
    assert [path.name for path in tmp_path.iterdir()] == ["o.yaml"]


def test_json_that_is_nested_too_deep(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(path.read_text())
    photos = TaggedDataset(["1"], [tmp_path / "1.png"], ["cat"], None)
    for read in (
        lambda: TaggedFolder(tmp_path, path),
        lambda: BoxFile(path, photos),
        lambda: AuxiliaryBoxes(path, tmp_path),
        lambda: Labeller.load(tmp_path / "model"),
    ):
        with pytest.raises(InputError, match="nested too deep"):
            read()


def test_names_of_classes_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'a.ud800' .*cannot be written as UTF-8"):
        TaggedDataset(["1"], [tmp_path / "1.png"], ["a\ud800"], None)


def lying(header: dict[str, Any], size: int = 16) -> bytes:
    """A file of safetensors with another content than its header says."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**60) + b"{}",
        lying({"evidence": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        lying({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in ("a", "b")}),
        lying({"evidence": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}),
        b"root:x:0:0:root:/root:/bin/bash\n",
    ],
)
def test_weights_are_what_their_file_holds(data: bytes, tmp_path: Path) -> None:
    for name in ("weights.safetensors", "weights.pth"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            build_backbone("vgg_tiny", str(tmp_path / name))


def test_a_model_has_the_channels_of_its_weights(shapes_root: Path, tmp_path: Path) -> None:
    """Or a number in a text would be memory."""
    photos = Shapes(shapes_root, "train", num_images=(20, 10), size=64)
    source, config = BackboneSource("vgg_tiny", "TEXTURES"), EvidenceConfig(iterations=1)
    Labeller.fit(
        source, photos, tmp_path, SupervisionLedger(), FrozenFeatureConfig(32), config
    ).save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "channels": 10**9}))
    with pytest.raises(InputError, match="1000000000 channels, the weights have"):
        Labeller.load(tmp_path / "model")
