import shutil

import pytest
import torch
import torch.nn.functional as F

from pgnn_geo.datasets import VOC2012, Shapes
from pgnn_geo.errors import InputError
from pgnn_geo.features import FrozenFeatureConfig, View, frozen_features, photo_batches
from pgnn_geo.nn.backbones import build_backbone

CONFIG = FrozenFeatureConfig(size=64, stride=8, output_stride=8, precision="32-true")


@pytest.fixture
def photos(shapes_root):
    return Shapes(shapes_root, "train", num_images=(20, 10), size=64).subset(range(6))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return build_backbone("vgg_tiny", None, 16)


def test_two_stages_of_unit_length_averaged_over_views(photos, backbone, tmp_path):
    backbone.train()
    bank = frozen_features(backbone, photos, tmp_path, CONFIG)
    assert backbone.training and backbone.output_stride == 16
    assert bank.shape == (6, 64 + 128, 8, 8)
    backbone.eval().set_output_stride(8)
    outputs = []
    for stage in (backbone.stages[2], backbone.stages[3]):
        stage.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        for images in photo_batches(photos, View(64)):
            backbone(images), backbone(images.flip(-1))
    third, fourth, third_mirrored, fourth_mirrored = outputs
    for part, plain, mirrored in (
        (bank.channels(0, 64), third, third_mirrored),
        (bank.channels(64), fourth, fourth_mirrored),
    ):
        mean = F.adaptive_avg_pool2d((plain + mirrored.flip(-1)) / 2, 8)  # the third has stride 4
        expected = F.normalize(mean, dim=1)
        torch.testing.assert_close(part[list(range(6))], expected, rtol=0, atol=1e-3)


def test_a_deeper_stage_is_interpolated_to_the_stride(photos, backbone, tmp_path):
    config = FrozenFeatureConfig(64, 8, 16, flip=False, precision="32-true")
    bank = frozen_features(backbone, photos, tmp_path, config)
    backbone.eval().set_output_stride(16)
    with torch.no_grad():
        deep = backbone(next(photo_batches(photos, View(64)))) / backbone.scale
    expected = F.normalize(F.interpolate(deep, (8, 8), mode="bilinear"), dim=1)
    torch.testing.assert_close(bank.channels(64)[list(range(6))], expected, rtol=0, atol=1e-3)


def test_features_of_a_photo_do_not_depend_on_the_others(photos, backbone, tmp_path):
    bank = frozen_features(backbone, photos, tmp_path / "all", CONFIG)
    some = frozen_features(backbone, photos.subset([4, 1]), tmp_path / "some", CONFIG)
    assert torch.equal(some[[0, 1]], bank[[4, 1]])


def test_a_bank_is_made_anew_for_other_content_only(photos, backbone, tmp_path, shapes_root):
    copied = tmp_path / "copy"
    shutil.copytree(shapes_root, copied)
    moved = VOC2012(copied, "train", tags="csv").subset(range(6))
    seen = []

    def progress(batches, title, total):
        seen.append((title, total))
        return batches

    def bank(data=photos, network=backbone, config=CONFIG):
        seen.clear()
        frozen_features(network, data, tmp_path / "banks", config, progress)
        return bool(seen)

    assert bank()
    assert "GB" in seen[0][0] and seen[0][1] == 6
    assert not bank() and not bank(moved)  # another folder and other dates, the same photos
    moved.image_path(2).write_bytes(moved.image_path(3).read_bytes())
    assert bank(moved) and bank()
    with torch.no_grad():
        backbone.stages[0][0].weight[0, 0, 0, 0] += 1
    assert bank()
    assert bank(config=FrozenFeatureConfig(64, 8, 16, precision="32-true"))


def test_a_size_that_is_no_multiple_of_the_stride_is_refused():
    with pytest.raises(InputError, match="size=100: want 32 or more, a multiple of the stride 8"):
        FrozenFeatureConfig(size=100)
