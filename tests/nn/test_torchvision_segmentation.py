"""Torchvision's segmentation models against torchvision itself."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models import MobileNet_V3_Large_Weights

from pgnn_geo.errors import InputError
from pgnn_geo.nn import TorchvisionSegmentation
from pgnn_geo.nn.architectures import network_from_config
from pgnn_geo.nn.torchvision_segmentation import (
    TORCHVISION_SEGMENTATION,
    torchvision_backbone_weights,
)

LIGHT = "lraspp_mobilenet_v3_large"
STRIDES = {"deeplabv3_mobilenet_v3_large": 16}


@pytest.mark.parametrize("architecture", [LIGHT, "deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_it_is_the_model_of_torchvision(architecture: str) -> None:
    torch.manual_seed(0)
    ours = TorchvisionSegmentation(architecture, 3, weights=None).eval()
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(
        architecture, weights=None, weights_backbone=None, num_classes=4
    ).eval()
    images = torch.rand(2, 3, 72, 96)
    normalised = torchvision.transforms.v2.functional.normalize(
        images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        logits, expected = ours(images), theirs(normalised)["out"]
    stride = STRIDES.get(architecture, 8)
    assert logits.shape == (2, 4, -(-72 // stride), 96 // stride)
    full = F.interpolate(logits, (72, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(full, expected)
    probabilities = ours.predict(images)
    torch.testing.assert_close(probabilities, expected.softmax(1))


def test_every_parameter_learns_at_the_rate_of_its_part() -> None:
    network = TorchvisionSegmentation(LIGHT, 3, weights=None)
    backbone, head = network.parameter_groups(1e-3, 4.0)
    assert (backbone["lr"], head["lr"]) == (1e-3, 4e-3)
    grouped = {id(p) for group in (backbone, head) for p in group["params"]}
    assert grouped == {id(p) for p in network.parameters()}


@pytest.mark.parametrize(
    ("architecture", "builder", "prefix"),
    [(LIGHT, torchvision.models.mobilenet_v3_large, "features.")],
)
def test_the_backbone_starts_from_the_classifier_in_a_file(
    tmp_path: Path, architecture: str, builder, prefix: str
) -> None:
    classifier = builder(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    network = TorchvisionSegmentation(architecture, 3, weights=str(tmp_path / "weights.pth"))
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[prefix + name]), name
    built = network_from_config(network.config)
    assert isinstance(built, TorchvisionSegmentation) and built.config == network.config
    built.load_state_dict(network.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(built.eval()(images), network.eval()(images))


def test_weights_are_those_that_torchvision_trains_the_model_from() -> None:
    assert len(TORCHVISION_SEGMENTATION) >= 6
    found = torchvision_backbone_weights(LIGHT, "DEFAULT")
    assert found is not None
    # Not the better IMAGENET1K_V2, and nothing that has seen pixel masks.
    assert found.name == str(MobileNet_V3_Large_Weights.IMAGENET1K_V1)
    assert found.trained_on == "ImageNet-1k labels"
    second = torchvision_backbone_weights(LIGHT, "IMAGENET1K_V2")
    assert second is not None and second.name == str(MobileNet_V3_Large_Weights.IMAGENET1K_V2)
    for name in TORCHVISION_SEGMENTATION:
        assert torchvision_backbone_weights(name, None) is None


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        ("lraspp", None, "'architecture' must be deeplab_v2 or one of deeplabv3_mobilenet"),
        (LIGHT, "COCO_WITH_VOC_LABELS_V1", r"must be 'DEFAULT', None, a file's path or one of"),
        (LIGHT, "/nowhere/weights.pth", "cannot be read"),
    ],
)
def test_what_is_not_there_is_an_error(architecture: str, weights, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TorchvisionSegmentation(architecture, 3, weights)


def test_weights_of_another_network_do_not_fit(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=f"{LIGHT}, weights .*the weights do not fit"):
        TorchvisionSegmentation(LIGHT, 3, str(tmp_path / "weights.pth"))


def test_it_has_no_frozen_stages_and_one_stride() -> None:
    network = TorchvisionSegmentation(LIGHT, 3, weights=None)
    with pytest.raises(InputError, match="freeze_stages=4"):
        network.freeze(4)
    with network.at_output_stride(None):
        pass
    with pytest.raises(InputError, match="train_stride=16"), network.at_output_stride(16):
        pass
