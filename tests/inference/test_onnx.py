"""Segmenters as ONNX files: the same masks as PyTorch's, through onnxruntime."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pgnn_geo.app.cli import main
from pgnn_geo.errors import InputError
from pgnn_geo.inference import Segmenter
from pgnn_geo.io import onnx_file
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import load_mask
from pgnn_geo.nn import DeepLabV2

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.fixture(scope="module", params=[None, 50.0], ids=["plain", "propagation"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    # Features of random weights are alike everywhere: the power keeps labels that differ.
    torch.manual_seed(0)
    network = DeepLabV2(
        "vgg_tiny", 3, "largefov", hidden_channels=16, weights=None, propagation=request.param
    )
    torch.nn.init.normal_(network.head.branches[0][-1].weight)  # labels that differ
    ledger = SupervisionLedger(tags="csv", tuned_on_truth=("threshold",))
    return Segmenter(network, ("cat", "größe", "cow"), ledger, {"miou": 0.5}, side=64)


@pytest.fixture(scope="module")
def path(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    segmenter.save_pretrained(folder / "segmenter")
    main(["export", f"--checkpoint={folder / 'segmenter'}", f"--out={folder / 'model.onnx'}"])
    return folder / "model.onnx"


def photo(height: int, width: int, seed: int = 1) -> torch.Tensor:
    small = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)[0].mul(255).byte()


def test_onnxruntime_gives_the_logits_of_torch(segmenter: Segmenter, path: Path) -> None:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert json.loads(found["classes"]) == list(segmenter.classes) and found["side"] == "64"
    network = segmenter.network.eval()
    for shape in ((1, 3, 64, 48), (2, 3, 33, 97), (1, 3, 1, 9)):  # not those of the export
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            expected = network(images)
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)


def test_it_is_read_back_as_the_same_segmenter(segmenter: Segmenter, path: Path) -> None:
    loaded = Segmenter.from_pretrained(path)
    assert (loaded.classes, loaded.ledger, loaded.metrics, loaded.side) == (
        segmenter.classes,
        segmenter.ledger,
        segmenter.metrics,
        segmenter.side,
    )
    image, options = photo(70, 90), {"scales": (0.5, 1.0), "precision": "32-true"}
    expected = segmenter.predict(image, **options)
    torch.testing.assert_close(loaded.predict(image, **options), expected, rtol=0, atol=1e-5)
    labels = segmenter.label(image, **options)
    assert len(labels.unique()) > 1
    assert (loaded.label(image, **options) == labels).float().mean() > 0.999
    assert "onnx" in repr(loaded)


def test_predict_takes_the_file(segmenter: Segmenter, path: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        pixels = photo(50 + number, 40, seed=number).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    options = [f"--photos={tmp_path / 'photos'}", "--precision=32-true"]
    main(["predict", f"--checkpoint={path}", f"--out={tmp_path / 'onnx'}", *options])
    torch_folder = path.parent / "segmenter"
    main(["predict", f"--checkpoint={torch_folder}", f"--out={tmp_path / 'torch'}", *options])
    for number in range(2):
        one, two = (
            load_mask(tmp_path / kind / "masks" / f"{number}.png") for kind in ("onnx", "torch")
        )
        assert one.shape == (50 + number, 40)
        assert np.mean((one == two).numpy()) > 0.999
    record = json.loads((tmp_path / "onnx" / "predict.json").read_text())
    assert record["classes"] == ["cat", "größe", "cow"]
    with pytest.raises(SystemExit):  # results of the other model are not gone on with
        main(["predict", f"--checkpoint={torch_folder}", f"--out={tmp_path / 'onnx'}", *options])


def test_what_an_onnx_file_cannot_do(
    path: Path, tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Segmenter.from_pretrained(path)
    with pytest.raises(InputError, match="runs on the CPU"):
        loaded.to("cuda")
    with pytest.raises(InputError, match="32-true"):
        loaded.predict(photo(8, 8), precision="bf16-mixed")
    with pytest.raises(InputError, match="copy that"):
        loaded.save_pretrained(tmp_path / "folder")
    with pytest.raises(InputError, match="copy that"):
        loaded.export_onnx(tmp_path / "again.onnx")
    with pytest.raises(InputError, match="ends in"):
        segmenter.export_onnx(tmp_path / "model.pt")
    with pytest.raises(InputError, match="no ONNX file"):
        Segmenter.from_pretrained(tmp_path / "nowhere.onnx")
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pgnn-geo\[onnx\]"):
        segmenter.export_onnx(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"pgnn-geo\[onnx\]"):
        Segmenter.from_pretrained(path)
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_files_are_refused(path: Path, tmp_path: Path) -> None:
    import onnx

    cut = tmp_path / "cut.onnx"
    cut.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        Segmenter.from_pretrained(cut)
    model = onnx.load(path)
    names = {entry.key: entry for entry in model.metadata_props}
    names["classes"].value = '["cat"]'
    onnx.save(model, tmp_path / "classes.onnx")
    with pytest.raises(InputError, match="1 names for 3 classes"):
        Segmenter.from_pretrained(tmp_path / "classes.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(InputError, match="no segmenter of this package"):
        Segmenter.from_pretrained(tmp_path / "foreign.onnx")
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ports = [[value(name, onnx.TensorProto.FLOAT, [1])] for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "other", *ports)
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "r.onnx")
    with pytest.raises(InputError, match="it has x, y"):
        Segmenter.from_pretrained(tmp_path / "r.onnx")


def test_int8_convolutions_give_nearly_the_same_masks(
    segmenter: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter.save_pretrained(tmp_path / "segmenter")
    for seed in range(4):
        pixels = photo(60, 80, seed).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
    given = ["export", f"--checkpoint={tmp_path / 'segmenter'}", f"--int8={tmp_path}"]
    main([*given, f"--out={tmp_path / 'int8.onnx'}", "--int8_photos=3"])
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(tmp_path / "int8.onnx").graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(
        isinstance(module, torch.nn.Conv2d) for module in segmenter.network.modules()
    )
    for node in convolutions:
        assert {made_by[name] for name in node.input[:2]} == {"DequantizeLinear"}
    # All else computes in float32: what it reads was no more than rounded by a convolution.
    rounded = {n.op_type for n in graph.node if "DequantizeLinear" in map(made_by.get, n.input)}
    network = segmenter.network
    after = {"Div", "ReduceL2", "Softmax"} if network.propagation else set()  # lengths, labels
    assert rounded <= {"Conv", "Relu"} | after

    loaded = Segmenter.from_pretrained(tmp_path / "int8.onnx")
    assert loaded.classes == segmenter.classes and loaded.side == segmenter.side
    image = photo(60, 80, seed=9)  # of the same kind, and not one of those
    expected = segmenter.label(image, precision="32-true")
    agreement = (loaded.label(image) == expected).float().mean()
    assert len(expected.unique()) > 1 and 0.95 < agreement
    # In 8 bits indeed: float32 agrees much more closely.
    difference = loaded.predict(image) - segmenter.predict(image, precision="32-true")
    assert 1e-4 < difference.abs().max() < 0.1


def test_int8_wants_photos(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int8 needs photos"):
        segmenter.export_onnx(tmp_path / "model.onnx", int8=[])
    assert not (tmp_path / "model.onnx").exists()
