"""Where weights come from, and what is known of them."""

import hashlib
import json
import pickle

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights

from pgnn_geo.errors import InputError
from pgnn_geo.nn import build_backbone
from pgnn_geo.nn.backbones import IMAGENET_MEAN, resolve_weights
from pgnn_geo.nn.backbones.timm import trained_on


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


@pytest.mark.parametrize("ending", ["pth", "safetensors", "wrapped"])
@torch.inference_mode()
def test_a_file_with_or_without_its_classifier(resnet, tmp_path, ending):
    state = resnet.state_dict()
    path = tmp_path / ("w.safetensors" if ending == "safetensors" else "w.pth")
    if ending == "safetensors":
        state = {k: v for k, v in state.items() if not k.startswith("fc.")}
        save_file(state, path)
    elif ending == "wrapped":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        torch.save(state, path)
    backbone = build_backbone("resnet18", str(path), 32).eval()
    images = torch.rand(1, 3, 64, 64)
    body = torch.nn.Sequential(*list(resnet.children())[:-2])
    torch.testing.assert_close(backbone(images), body((images - backbone.mean) / backbone.std))
    assert not any(p.requires_grad for norm in backbone._norms() for p in norm.parameters())


def test_the_header_of_a_file_says_what_it_is(resnet, tmp_path):
    header = {"mean": "[0.5, 0.5, 0.5]", "trained_on": "X-rays alone", "licence": "CC0"}
    path = tmp_path / "xrays.safetensors"
    save_file(resnet.state_dict(), path, header)
    weights = resolve_weights("resnet18", str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(weights) == (
        f"xrays.safetensors, sha256 {digest[:12]} (trained on: X-rays alone; licence: CC0)"
    )
    backbone = build_backbone("resnet18", str(path))
    assert backbone.mean.flatten().tolist() == [0.5] * 3
    save_file(resnet.state_dict(), path, {"std": json.dumps([1, 0, 1])})
    with pytest.raises(InputError, match=r"header of .*three numbers"):
        resolve_weights("resnet18", str(path))


def test_a_file_of_torchvision_is_recognised(resnet, tmp_path, monkeypatch):
    path = tmp_path / "renamed.pth"
    torch.save(resnet.state_dict(), path)
    weights = resolve_weights("resnet18", str(path))
    assert weights.trained_on == "not stated" and weights.mean == IMAGENET_MEAN
    start = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(
        torchvision.models._api.WeightsEnum, "url", f"https://there/resnet18-{start}.pth"
    )
    weights = resolve_weights("resnet18", str(path))
    assert weights.name == str(ResNet18_Weights.IMAGENET1K_V1)
    assert weights.trained_on == "ImageNet-1k labels"
    assert torch.equal(weights.load()["conv1.weight"], resnet.conv1.weight)


class Harmful:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("kind", ["pickle", "object", "damaged", "list", "other", "missing"])
def test_a_file_that_cannot_be_used_is_named(resnet, tmp_path, kind, capsys):
    path = tmp_path / ("w.safetensors" if kind == "damaged" else "w.pth")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Harmful()))
    elif kind == "object":
        torch.save({"state_dict": Harmful()}, path)
    elif kind == "damaged":
        path.write_bytes(b"{" * 100)
    elif kind == "list":
        torch.save([torch.ones(1)], path)
    elif kind == "other":
        torch.save(
            torchvision.models.resnet34().state_dict() | {"conv1.weight": torch.ones(1)}, path
        )
    with pytest.raises(InputError, match=r"w\.(pth|safetensors)"):
        build_backbone("resnet18", str(path))
    assert "unpickled" not in capsys.readouterr().out


def test_what_torchvision_says_of_its_weights():
    for name, weights, words in [
        ("resnet50", "IMAGENET1K_V2", "ImageNet-1k labels"),
        ("vgg16", "DEFAULT", "ImageNet-1k labels"),
        ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1", "hashtags of Instagram, then ImageNet-1k labels"),
    ]:
        assert resolve_weights(name, weights).trained_on == words
    assert "SWAG" in resolve_weights("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1").licence
    assert resolve_weights("swin_t", None) is None


@pytest.mark.parametrize(
    "tag, words",
    [
        ("lvd142m", "images alone (self-supervised)"),
        (
            "laion2b_ft_in12k_in1k",
            "image-text pairs, then ImageNet-12k labels, then ImageNet-1k labels",
        ),
        ("openai", "image-text pairs"),
        ("augreg_in21k_ft_in1k", "ImageNet-21k labels, then ImageNet-1k labels"),
        ("mae", "images alone (self-supervised)"),
        ("", "not stated"),
        ("untrained", "not stated"),
    ],
)
def test_what_a_tag_of_timm_says(tag, words):
    assert trained_on(tag) == words


def test_timm_says_what_its_weights_are():
    pytest.importorskip("timm")
    weights = resolve_weights("timm:vit_small_patch14_dinov2", "DEFAULT")
    assert str(weights) == (
        "timm vit_small_patch14_dinov2.lvd142m (trained on: images alone (self-supervised); "
        "licence: apache-2.0)"
    )
    clip = resolve_weights("timm:vit_base_patch32_clip_224", "openai")
    assert clip.trained_on == "image-text pairs" and clip.mean != IMAGENET_MEAN


@torch.inference_mode()
def test_a_file_for_a_timm_model(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=64)  # with a classifier, other sizes
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone = build_backbone("timm:vit_tiny_patch16_224", str(tmp_path / "w.pth"), None).eval()
    assert torch.equal(
        backbone.stages[0].model.patch_embed.proj.weight, model.patch_embed.proj.weight
    )
    assert backbone.mean.flatten().tolist() == [0.5] * 3  # as the weights of timm's are used
    del model.blocks[3]
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"of .* tensors .* missing"):
        build_backbone("timm:vit_tiny_patch16_224", str(tmp_path / "w.pth"), None)
