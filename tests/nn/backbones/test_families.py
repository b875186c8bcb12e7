"""What every backbone promises, for one of each family with random weights."""

import pytest
import torch

from pgnn_geo.errors import InputError
from pgnn_geo.nn import build_backbone

SMALL = ["vgg_tiny", "resnet18", "convnext_tiny", "swin_t", "timm:vit_tiny_patch16_224"]
SMALL += ["timm:convnext_atto"]
LARGE = [
    "timm:vit_small_patch14_dinov2",
    "vit_b_32",
    "resnet50",
    "resnext50_32x4d",
    "swin_v2_t",
    "vit_b_16",
    "timm:vit_small_patch16_dinov3",
]
LARGE += ["timm:vit_base_patch32_clip_224", "timm:swin_tiny_patch4_window7_224"]
LARGE += ["timm:eva02_tiny_patch14_224", "timm:resnet50_clip", "timm:efficientnet_b0"]
LARGE += ["timm:samvit_base_patch16", "timm:vit_base_patch16_siglip_224"]
FAMILIES = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]

pytestmark = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(autouse=True)
def _timm(name):
    if name.startswith("timm:"):
        pytest.importorskip("timm")


@torch.inference_mode()
def test_each_stride_decides_the_size_of_the_map(built, name):
    backbone = built(name)
    usual = backbone.output_stride
    assert usual == backbone.strides[-1]
    images = torch.rand(1, 3, 65, 97)
    for stride in backbone.strides:
        backbone.set_output_stride(stride)
        before, last = backbone.last_two(images)
        want = (1, backbone.out_channels, -(-65 // stride), -(-97 // stride))
        assert backbone(images).shape == last.shape == want
        assert before.shape[2] >= last.shape[2] and before.shape[3] >= last.shape[3]
        assert backbone.nearest_stride(stride) == stride
    backbone.set_output_stride(usual)
    with pytest.raises(InputError, match="must be one of"):
        backbone.set_output_stride(7)
    assert backbone.output_stride == usual


@torch.inference_mode()
def test_a_place_of_the_photo_is_that_place_of_the_map(built, name):
    """What changes at one place changes the map most there: not mirrored, turned or rolled."""
    backbone = built(name)
    backbone.set_output_stride(backbone.nearest_stride(32))
    stride = backbone.output_stride
    plain = torch.rand(1, 3, 5 * stride, 7 * stride, generator=torch.Generator().manual_seed(0))
    changed = plain.clone()
    row, column = 1, 4
    y, x = row * stride, column * stride
    changed[..., y : y + stride, x : x + stride] = 1 - changed[..., y : y + stride, x : x + stride]
    for images, expected in [((plain, changed), column), ((plain.flip(-1), changed.flip(-1)), 2)]:
        for level in backbone.last_two(torch.cat(images)):
            moved = (level[0] - level[1]).square().sum(dim=0)
            peak = divmod(int(moved.argmax()), moved.size(1))
            scale = moved.size(0) / 5  # the level before may have twice the positions
            # One cell off at most: the places of a ResNet lie at the corners of its cells.
            assert abs((peak[0] + 0.5) / scale - row - 0.5) <= 1
            assert abs((peak[1] + 0.5) / scale - expected - 0.5) <= 1


def test_what_is_frozen_takes_no_gradient(name):
    backbone = build_backbone(name, None, None)
    backbone.freeze(len(backbone.stages)).freeze_norms().train()
    assert not any(p.requires_grad for stage in backbone.stages for p in stage.parameters())
    assert not any(module.training for stage in backbone.stages for module in stage.modules())
    features = backbone(torch.rand(2, 3, 64, 64))
    assert not features.requires_grad
    backbone.freeze(len(backbone.stages) - 1)
    trained = [p for p in backbone.stages[-1].parameters() if p.requires_grad]
    backbone(torch.rand(2, 3, 64, 64)).sum().backward()
    assert trained and any(p.grad is not None for p in trained)


@torch.inference_mode()
def test_a_state_goes_to_another_one(built, name, tmp_path):
    backbone, images = built(name), torch.rand(1, 3, 64, 96)
    for level in backbone.levels(backbone.stem(images)):
        assert level.shape[2:] == backbone(images).shape[2:]
    torch.save(backbone.state_dict(), tmp_path / "state.pt")
    other = build_backbone(name, None, None).eval()
    assert not torch.equal(other(images), backbone(images))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(images), backbone(images))
