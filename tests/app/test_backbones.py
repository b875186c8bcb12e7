"""The whole of stage 1 on backbones of other families, whose weights come from a file."""

import json
from pathlib import Path

import pytest
import torch
import torchvision

from pgnn_geo.app.cli import main
from pgnn_geo.datasets import Shapes
from pgnn_geo.labels.labeller import Labeller
from pgnn_geo.nn import build_backbone

FEW = ["--evidence.iterations=5", "--evidence.positions=256", "--labels.refine=none"]
NAMES = [
    "timm:vit_small_patch14_dinov2",
    pytest.param("resnet50", marks=pytest.mark.slow),
    pytest.param("convnext_tiny", marks=pytest.mark.slow),
    pytest.param("swin_t", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    Shapes(root, split="train", size=64, num_images=(8, 1))
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_run_on_weights_of_a_file(
    name: str, shapes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = build_backbone(name, None, None)
    weights, out = tmp_path / "mine.pth", tmp_path / "run"
    if name.startswith("timm:"):
        state = backbone.stages[0].model.state_dict()
    elif name == "swin_t":
        state = backbone.stages[0].state_dict()
    else:
        state = torchvision.models.get_model(name).state_dict()
    torch.save(state, weights)
    options = [f"--network.backbone={name}", f"--network.weights={weights}"]
    command = ["run", f"--root={shapes_root}", "--segment=off", *FEW, *options]
    size = ["--features.size=64", "--features.stride=16"]
    main([*command, *size, f"--out={out}"])
    metrics = json.loads((out / "metrics.json").read_text())
    (line,) = [line for line in metrics["supervision"] if line.startswith("weights:")]
    assert line.startswith("weights: mine.pth, sha256 ") and "trained on: not stated" in line
    assert len(list((out / "pgnn" / "labels").glob("*.png"))) == 8
    weights.unlink()  # the model has them
    labeller = Labeller.load(out / "pgnn" / "model")
    assert labeller.source.weights is None
    label = ["label", f"--checkpoint={out / 'pgnn' / 'model'}"]
    main([*label, f"--root={shapes_root}", f"--out={tmp_path / 'labels'}"])
    for path in (out / "pgnn" / "labels").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "labels" / path.name).read_bytes()


def test_doctor_says_what_is_known_of_weights(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    with pytest.raises(SystemExit):
        main(
            [
                "doctor",
                "--network.backbone=timm:vit_small_patch14_dinov2",
                "--network.weights=x.pth",
            ]
        )
    assert "x.pth' cannot be read" in capsys.readouterr().out
    main(["doctor", "--network.backbone=vgg_tiny"])
    out = capsys.readouterr().out
    assert (
        "backbone: vgg_tiny, PackagedWeights.TEXTURES (trained on: labels of drawn textures" in out
    )
    assert "photos are normalised by mean 0.485, 0.456, 0.406" in out


def test_an_unknown_backbone_is_named_before_work(shapes_root: Path, tmp_path: Path) -> None:
    command = ["run", f"--root={shapes_root}", f"--out={tmp_path / 'run'}"]
    with pytest.raises(SystemExit):
        main([*command, "--network.backbone=alexnet"])
    assert not (tmp_path / "run").exists()
