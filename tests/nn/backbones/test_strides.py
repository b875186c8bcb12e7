import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision.models import VGG16_Weights
from torchvision.transforms.v2.functional import pil_to_tensor

from pgnn_geo.errors import InputError
from pgnn_geo.nn import build_backbone
from pgnn_geo.nn.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ResNetBackbone,
    resolve_weights,
)

SIZES = [(64, 64), (65, 97)]


@pytest.mark.parametrize("name, channels", [("vgg16", 512), ("resnet101", 2048)])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride_decides_the_size_of_the_map(name, channels, stride):
    backbone = build_backbone(name, weights=None, output_stride=stride).eval()
    for height, width in SIZES:
        with torch.inference_mode():
            features = backbone(torch.rand(1, 3, height, width))
        assert features.shape == (1, channels, -(-height // stride), -(-width // stride))


def test_vgg16_at_full_stride_is_torchvisions():
    torch.manual_seed(0)
    backbone = build_backbone("vgg16", weights=None, output_stride=32).eval()
    reference = torchvision.models.vgg16().features.eval()
    convolutions = [m for m in backbone.stages.modules() if isinstance(m, torch.nn.Conv2d)]
    targets = [m for m in reference if isinstance(m, torch.nn.Conv2d)]
    for source, target in zip(convolutions, targets, strict=True):
        target.load_state_dict(source.state_dict())
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(
            backbone(images), reference((images - backbone.mean) / backbone.std)
        )


@pytest.mark.parametrize("stride, dilation", [(16, [False, False, True]), (8, [False, True, True])])
def test_resnet_dilates_as_torchvision_does(stride, dilation):
    torch.manual_seed(0)
    reference = torchvision.models.resnet50(replace_stride_with_dilation=dilation).eval()
    plain = torchvision.models.resnet50()
    plain.load_state_dict(reference.state_dict())
    backbone = ResNetBackbone(plain, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    backbone.set_output_stride(stride).eval()
    images = torch.rand(1, 3, 64, 64)
    body = torchvision.models._utils.IntermediateLayerGetter(reference, {"layer4": "out"})
    with torch.inference_mode():
        expected = body((images - backbone.mean) / backbone.std)["out"]
        torch.testing.assert_close(backbone(images), expected)


def test_changing_the_stride_and_back_changes_nothing():
    backbone = build_backbone("vgg_tiny", weights=None, output_stride=16).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = backbone(images)
        backbone.set_output_stride(8)
        assert backbone(images).shape[-1] == 8
        backbone.set_output_stride(16)
        assert torch.equal(backbone(images), before)


def test_frozen_stages_take_no_gradient_and_split_the_network():
    backbone = build_backbone("vgg16", weights=None, freeze_stages=3)
    images = torch.rand(1, 3, 32, 32)
    stem = backbone.stem(images)
    assert not stem.requires_grad
    features = backbone.trunk(stem)
    torch.testing.assert_close(features, backbone(images))
    features.sum().backward()
    assert [p.grad is None for p in backbone.stages[2].parameters()] == [True] * 6
    assert all(p.grad is not None for p in backbone.stages[3].parameters())


@pytest.mark.parametrize(
    "name, stride, frozen",
    [("vgg_tiny", 8, 0), ("vgg_tiny", 16, 1), ("vgg16", 32, 4), ("resnet101", 16, 3)],
)
def test_levels_are_the_last_two_stages(name, stride, frozen):
    backbone = build_backbone(name, None, stride, freeze_stages=frozen).eval()
    images = torch.rand(1, 3, 65, 97)
    with torch.inference_mode():
        stem = backbone.stem(images)
        before, last = backbone.levels(stem)
        torch.testing.assert_close(last * backbone.scale, backbone.trunk(stem))
        x = (images - backbone.mean) / backbone.std
        for stage in backbone.stages[:-1]:
            x = stage(x)
    assert before.shape[2:] == last.shape[2:]
    torch.testing.assert_close(before, F.adaptive_avg_pool2d(x, last.shape[2:]))


def test_levels_where_all_stages_are_frozen():
    backbone = build_backbone("vgg_tiny", None, 8)
    backbone.freeze(len(backbone.stages))
    stem = backbone.stem(torch.rand(1, 3, 64, 64))
    (last,) = backbone.levels(stem)
    assert torch.equal(last * backbone.scale, backbone.trunk(stem))


def test_frozen_norms_keep_their_statistics():
    backbone = build_backbone("vgg_tiny", weights=None, freeze_stages=1).train()
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.training for m in norms] == [False] + [True] * (len(norms) - 1)
    backbone.freeze_norms()
    assert not any(m.training or m.weight.requires_grad for m in norms)
    backbone.freeze(0).train()  # stages are thawed, the norms are not
    assert not any(m.training or m.bias.requires_grad for m in norms)
    assert backbone.stages[0][0].weight.requires_grad


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"name": "alexnet"}, "alexnet"),
        ({"name": "vgg16", "weights": "IMAGENET21K"}, "IMAGENET1K_FEATURES"),
        ({"name": "vgg_tiny", "weights": "IMAGENET1K_V1"}, "TEXTURES"),
        ({"name": "vgg16", "weights": None, "output_stride": 4}, "8, 16, 32"),
        ({"name": "vgg_tiny", "weights": None, "output_stride": 32}, "8, 16"),
        ({"name": "vgg16", "weights": None, "freeze_stages": 9}, "0..5"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        build_backbone(**arguments)


def test_default_weights_are_the_ones_the_literature_fine_tunes():
    chosen = resolve_weights("vgg16", "DEFAULT")
    assert chosen is not None and chosen.name == str(VGG16_Weights.IMAGENET1K_FEATURES)
    assert resolve_weights("vgg16", None) is None


def test_absent_weights_say_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no net"))
    )
    with pytest.raises(InputError, match=r"vgg16_features.*TORCH_HOME"):
        build_backbone("vgg16")


@pytest.mark.voc6
def test_pretrained_features_of_a_photo_have_a_moderate_range(voc6_root, monkeypatch):
    home = Path(os.environ.get("TORCH_HOME", voc6_root.parent.parent / "torch_home"))
    if not list(home.glob("hub/checkpoints/vgg16_features*.pth")):
        pytest.skip(f"no VGG-16 weights in {home}; set TORCH_HOME")
    monkeypatch.setenv("TORCH_HOME", str(home))
    backbone = build_backbone("vgg16").eval()
    photo = sorted((voc6_root / "JPEGImages").glob("*.jpg"))[0]
    image = pil_to_tensor(Image.open(photo))[:, :224, :224] / 255
    with torch.inference_mode():
        features = backbone(image[None])
    assert 0.1 < features.square().mean().sqrt() < 10
