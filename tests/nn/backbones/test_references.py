"""The families against the networks that they are made of."""

import pytest
import torch
import torchvision

from pgnn_geo.errors import InputError
from pgnn_geo.nn import build_backbone
from pgnn_geo.nn.backbones import BACKBONES, BackboneEntry, from_module
from pgnn_geo.nn.backbones.vit import ViTMaps


@torch.inference_mode()
def test_convnext_is_torchvisions_and_dilates_without_a_change_at_its_own_places(built):
    backbone = built("convnext_tiny")
    images = torch.rand(1, 3, 128, 192)
    reference = torchvision.models.convnext_tiny().eval()
    values = [p for stage in backbone.stages for p in stage.parameters()]
    for own, theirs in zip(values, reference.features.parameters(), strict=True):
        theirs.copy_(own)
    expected = reference.features((images - backbone.mean) / backbone.std)
    torch.testing.assert_close(backbone(images), expected)
    try:  # every second place of the map at half the stride, and every fourth
        for stride, places in [(16, slice(0, None, 2)), (8, slice(1, None, 4))]:
            backbone.set_output_stride(stride)
            torch.testing.assert_close(
                backbone(images)[..., places, places], expected, rtol=1e-3, atol=1e-4
            )
    finally:
        backbone.set_output_stride(32)


@torch.inference_mode()
def test_swin_and_vit_are_torchvisions(built):
    images = torch.rand(1, 3, 224, 224)
    swin, vit = torchvision.models.swin_t().eval(), torchvision.models.vit_b_32().eval()
    swin.head = torch.nn.Identity()
    backbone = built("swin_t")
    swin.load_state_dict(backbone.stages[0].state_dict())
    pooled = backbone(images).mean(dim=(2, 3))
    torch.testing.assert_close(pooled, swin((images - backbone.mean) / backbone.std))
    tokens = []
    vit.encoder.register_forward_hook(lambda module, args, output: tokens.append(output))
    maps = ViTMaps(vit)(images)
    vit(images)
    assert torch.equal(maps[-1].flatten(2).mT, tokens[-1][:, 1:])
    # The level before: blocks 10 to 12 taken away.
    vit.encoder.layers = vit.encoder.layers[:9]
    vit(images)
    assert torch.equal(maps[0].flatten(2).mT, tokens[-1][:, 1:])


@pytest.mark.parametrize("size", [(5, 9), (14, 14), (3, 2)])
def test_positions_are_resized_as_timm_does(size):
    layers = pytest.importorskip("timm.layers")
    vit = torchvision.models.vit_b_32()
    torch.nn.init.normal_(vit.encoder.pos_embedding)
    expected = layers.resample_abs_pos_embed(vit.encoder.pos_embedding, size)
    torch.testing.assert_close(ViTMaps(vit)._positions(*size), expected)


@torch.inference_mode()
def test_timm_models_are_timms(built):
    timm = pytest.importorskip("timm")
    images = torch.rand(1, 3, 518, 518)
    backbone = built("timm:vit_small_patch14_dinov2")
    reference = timm.create_model("vit_small_patch14_dinov2", num_classes=0).eval()
    reference.load_state_dict(backbone.stages[0].model.state_dict())
    tokens = reference.forward_features((images - backbone.mean) / backbone.std)
    prefix = reference.num_prefix_tokens
    got = backbone(images).flatten(2).mT
    torch.testing.assert_close(got, tokens[:, prefix:], rtol=1e-4, atol=1e-4)


def test_another_stride_of_a_timm_model_has_the_same_parameters():
    pytest.importorskip("timm")
    backbone = build_backbone("timm:convnext_atto", None, 32)
    before = dict(backbone.named_parameters())
    backbone.freeze(1).set_output_stride(8)
    after = dict(backbone.named_parameters())
    assert list(before) == list(after) and all(before[k] is after[k] for k in before)
    assert not any(p.requires_grad for p in after.values())


@pytest.mark.parametrize(
    "name, words",
    [
        ("timm:vit_smal", "near it are"),
        ("timm:mixer_b16_224", "photos of any size"),
        ("timm:vit_small_patch14_dinov2.lvd142", "lvd142m"),
        ("tim:resnet18", "timm:NAME"),
    ],
)
def test_what_cannot_be_had_is_named(name, words):
    pytest.importorskip("timm")
    with pytest.raises(InputError, match=words):
        build_backbone(name, "DEFAULT" if "." in name else None, None)


class Maps(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.kind = torch.nn.Conv2d(3, 6, 8, stride=8), kind

    def forward(self, images):
        x = self.conv(images)
        if self.kind == "tokens":
            tokens = x.flatten(2).mT
            return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return [images, x.relu(), x] if self.kind == "list" else x


@pytest.mark.parametrize("kind", ["map", "list", "tokens"])
@torch.inference_mode()
def test_a_module_of_ones_own(kind):
    module = Maps(kind)
    backbone = from_module(
        module, (0.0,) * 3, (1.0,) * 3, prefix_tokens=1 if kind == "tokens" else None
    )
    assert backbone.strides == [8] and backbone.out_channels == 6 and module.training
    images = torch.rand(2, 3, 40, 64)
    torch.testing.assert_close(backbone(images), module.conv(images))
    levels = backbone.last_two(images)
    assert len(levels) == (2 if kind == "list" else 1)
    torch.testing.assert_close(levels[-1], module.conv(images))
    assert backbone(torch.rand(1, 3, 33, 41)).shape == (1, 6, 5, 6)


@pytest.mark.parametrize("options", [{"side": 100}, {"prefix_tokens": 0}])
def test_a_module_without_maps_is_refused(options):
    module = Maps("tokens" if "prefix_tokens" in options else "map")
    with pytest.raises(InputError, match="'module' answers"):
        from_module(module, **options)


def test_an_entry_of_ones_own_is_a_choice(monkeypatch):
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))

    def build(state, **norm):
        return from_module(Maps("map"), **norm)

    BACKBONES.register("mine")(BackboneEntry(build, mean=(0.5,) * 3))
    backbone = build_backbone("mine", None, 8)
    assert backbone.mean.flatten().tolist() == [0.5] * 3
    with pytest.raises(InputError, match="want a file's path, or None"):
        build_backbone("mine", "DEFAULT")
