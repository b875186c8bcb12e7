"""The whole of stage 1 on backbones of other families, whose weights come from a file."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from pgnn_geo.app.cli import main
from pgnn_geo.datasets import VOC2012, Shapes
from pgnn_geo.io.masks import load_mask
from pgnn_geo.labels.labeller import Labeller
from pgnn_geo.nn import build_backbone

SIX = "cat,cow,dog,horse,person,sheep"
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


def random_weights(name: str, path: Path) -> Path:
    """Write weights as those who publish them do."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = build_backbone(name, None, None)
    if name.startswith("timm:"):
        state = backbone.stages[0].model.state_dict()
    elif name == "swin_t":
        state = backbone.stages[0].state_dict()
    else:
        state = torchvision.models.get_model(name).state_dict()
    torch.save(state, path)
    return path


@pytest.fixture
def few_photographs(voc6_root: Path, tmp_path: Path) -> Path:
    """VOC's layout by links, with two photographs of each of six classes."""
    root = tmp_path / "few"
    photos = VOC2012(voc6_root, "train", SIX)
    assert photos.tags is not None
    ids = [photos.image_ids[int(i)] for column in photos.tags.T for i in column.nonzero()[:2, 0]]
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(dict.fromkeys(ids)))
    for name in ("JPEGImages", "SegmentationClass", "image_labels.csv"):
        (root / name).symlink_to((voc6_root / name).resolve())
    return root


@pytest.mark.slow
@pytest.mark.voc6
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", ["timm:vit_small_patch14_dinov2", "resnet50", "convnext_tiny", "swin_t"]
)
def test_the_recipe_best_on_photographs(name: str, few_photographs: Path, tmp_path: Path) -> None:
    """From start to end; weights are random, so what comes out is not measured."""
    weights, out = random_weights(name, tmp_path / "mine.pth"), tmp_path / "run"
    options = [f"--network.backbone={name}", f"--network.weights={weights}", f"--classes={SIX}"]
    main(["run", f"--root={few_photographs}", f"--out={out}", "--segment=off", *options])
    photos = VOC2012(few_photographs, "train", SIX)
    assert photos.tags is not None and 6 <= len(photos) <= 12
    for image_id, tags in zip(photos.image_ids, photos.tags, strict=True):
        mask = load_mask(out / "pgnn" / "labels" / f"{image_id}.png")
        with Image.open(few_photographs / "JPEGImages" / f"{image_id}.jpg") as photo:
            assert mask.shape == (photo.height, photo.width)
        assert set(mask.unique().tolist()) <= {0, *(tags.nonzero()[:, 0] + 1).tolist()}
    metrics = json.loads((out / "metrics.json").read_text())
    assert 0 < metrics["pgnn"]["miou"] < 1 and metrics["images"] == len(photos)
    assert not (out / "features").exists() and (out / "report.html").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_on_weights_of_a_file(
    name: str, shapes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = random_weights(name, tmp_path / "mine.pth"), tmp_path / "run"
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
