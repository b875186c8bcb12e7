import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pgnn_geo.errors import InputError
from pgnn_geo.nn import deeplab
from pgnn_geo.nn.backbones import build_backbone
from pgnn_geo.nn.deeplab import DeepLabV2, DilatedHead
from pgnn_geo.nn.segmentation_network import upsample_logits


def small(backbone="vgg16", **kwargs):
    return DeepLabV2(backbone, num_classes=3, hidden_channels=16, weights=None, **kwargs)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet101"])
@pytest.mark.parametrize("head", ["aspp", "largefov"])
def test_shapes_at_odd_sizes(backbone, head):
    model = small(backbone, head=head).eval()
    with torch.no_grad():
        logits = model(torch.rand(2, 3, 41, 65))
    assert logits.shape == (2, 4, 6, 9)
    probabilities = model.predict(torch.rand(1, 3, 41, 65), size=(50, 60))
    assert probabilities.shape == (1, 4, 50, 60)
    assert torch.allclose(probabilities.sum(1), torch.ones(1, 50, 60), atol=1e-5)
    assert len(model.head.branches) == {"aspp": 4, "largefov": 1}[head]


def test_head_is_a_sum_of_dilated_convolutions():
    torch.manual_seed(0)
    head = DilatedHead(5, 3, dilations=(6, 12, 18, 24)).double()
    features = torch.rand(2, 5, 30, 28).double()
    expected = 0
    for dilation, branch in zip((6, 12, 18, 24), head.branches, strict=True):
        (layer,) = branch
        nn.init.normal_(layer.bias)
        expected = expected + F.conv2d(
            features, layer.weight, layer.bias, padding=dilation, dilation=dilation
        )
    assert torch.allclose(head(features), expected)


def test_head_sees_its_dilations_only():
    head = DilatedHead(2, 1, dilations=(2, 5), hidden_channels=4).eval()
    features = torch.rand(1, 2, 21, 21, requires_grad=True)
    nn.init.constant_(head.branches[0][0].bias, 10)  # keeps every ReLU open
    nn.init.constant_(head.branches[1][0].bias, 10)
    for branch in head.branches:
        nn.init.uniform_(branch[3].weight)
    head(features)[0, 0, 10, 10].backward()
    seen = features.grad[0].abs().sum(0).nonzero().tolist()
    expected = {(10 + y * d, 10 + x * d) for d in (2, 5) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    assert {tuple(position) for position in seen} == expected


def test_normalized_features_have_a_root_mean_square_of_one():
    torch.manual_seed(0)
    head = DilatedHead(8, 3, (2,), normalize=True).double()
    plain = DilatedHead(8, 3, (2,)).double()
    plain.load_state_dict(head.state_dict())
    features = torch.rand(2, 8, 9, 7).double()
    strength = torch.rand(2, 1, 9, 7).double() * 100 + 0.1
    scaled = features / features.square().mean(1, keepdim=True).sqrt()
    assert torch.allclose(head(features * strength), plain(scaled))
    assert head(torch.zeros(1, 8, 3, 3).double()).isfinite().all()


def test_networks_saved_before_there_was_normalization_have_none():
    config = small().config
    del config["normalize"]
    assert not DeepLabV2.from_config(config).head.normalize
    assert DeepLabV2.from_config({**config, "normalize": True}).head.normalize


def test_vgg_branches_have_the_classifiers_layers():
    model = DeepLabV2("vgg16", num_classes=20, head="largefov", weights=None)
    shapes = [tuple(p.shape) for p in model.head.parameters() if p.dim() == 4]
    assert shapes == [(1024, 512, 3, 3), (1024, 1024, 1, 1), (21, 1024, 1, 1)]
    assert model.head.branches[0][0].dilation == (12, 12)


def test_parameter_groups_cover_what_is_trained_once():
    model = small("resnet101", freeze_stages=2)
    groups = model.parameter_groups(lr=0.1)
    assert [(group["name"], group["lr"]) for group in groups] == [("backbone", 0.1), ("head", 1)]
    given = [id(weight) for group in groups for weight in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {id(weight) for weight in model.parameters() if weight.requires_grad}
    torch.optim.SGD(groups, momentum=0.9)
    model.backbone.freeze(5)
    assert [group["name"] for group in model.parameter_groups(0.1)] == ["head"]


def pretrained(*args):
    return build_backbone(*args).freeze_norms()  # as it is with downloaded weights


def test_pretrained_batch_norm_is_frozen(monkeypatch):
    monkeypatch.setattr(deeplab, "build_backbone", pretrained)
    model = small("resnet101").eval().train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 100
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    before = [norm.running_mean.clone() for norm in norms]
    model(torch.rand(2, 3, 33, 33)).sum().backward()
    assert all(norm.weight.grad is None and norm.bias.grad is None for norm in norms)
    assert all(
        torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True)
    )


def test_learns_two_halves():
    torch.manual_seed(0)
    model = small("vgg_tiny", head="largefov", dilations=[1]).train()
    images = torch.zeros(1, 3, 64, 64)
    images[..., 32:] = 1
    target = (images[:, 0] > 0.5).long() * 2
    target[:, 0] = 255
    optimizer = torch.optim.SGD(model.parameter_groups(lr=0.01), momentum=0.9)
    for _ in range(40):
        logits = upsample_logits(model(images), target.shape[-2:])
        loss = F.cross_entropy(logits, target, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predicted = model.eval().predict(images).argmax(1)
    assert (predicted == target)[target != 255].float().mean() > 0.85


def test_upsampling_is_full_precision():
    logits = torch.randn(1, 2, 3, 4)
    large = upsample_logits(logits.bfloat16(), (9, 8))
    assert large.dtype == torch.float
    assert torch.equal(upsample_logits(logits, (3, 4)), logits)
    assert upsample_logits(logits.double(), (9, 8)).dtype == torch.double


def test_bad_arguments():
    with pytest.raises(InputError, match="'head' must be one of"):
        small(head="psp")
    with pytest.raises(InputError, match="one number"):
        small(head="largefov", dilations=(6, 12))
    with pytest.raises(InputError, match="at least 1"):
        small(dilations=(0, 6))


@pytest.mark.parametrize("backbone", ["vgg16", "resnet101"])
def test_at_another_stride_the_same_weights_see_as_much(backbone):
    torch.manual_seed(0)
    model = small(backbone, head="aspp").eval()
    coarse = small(backbone, head="aspp", output_stride=16, dilations=(3, 6, 9, 12)).eval()
    coarse.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        fine = model(images)
        with model.at_output_stride(16):
            assert torch.equal(model(images), coarse(images))
            with model.at_output_stride(8):
                assert torch.equal(model(images), fine)
            assert model.backbone.output_stride == 16
        assert torch.equal(model(images), fine)
        with model.at_output_stride(None):
            assert torch.equal(model(images), fine)


def test_a_stride_that_dilations_do_not_fit():
    model = small(head="largefov", dilations=(3,))
    with pytest.raises(InputError, match="no whole numbers at stride 16"):
        with model.at_output_stride(16):
            pass
    assert model.backbone.output_stride == 8 and model.head.branches[0][0].dilation == (3, 3)


@pytest.mark.parametrize("backbone", ["vgg_tiny", "resnet18"])
def test_probabilities_travel_along_similar_features_when_evaluated(backbone):
    torch.manual_seed(0)
    plain = small(backbone).eval()
    network = DeepLabV2.from_config({**plain.config, "propagation": 2.0}).eval()
    network.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.normal_()
        plain.load_state_dict(network.state_dict())
        images = torch.rand(2, 3, 48, 64)
        own = plain(images).softmax(1)
        for logits, start, image in zip(network(images), own, images, strict=True):
            before, last = plain.backbone.last_two(image[None])
            levels = F.interpolate(before, last.shape[-2:], mode="area"), last
            units = [each[0] / each[0].norm(dim=0) for each in levels]
            nodes = torch.cat(units).flatten(1).T.double()
            nodes -= nodes.mean(0)
            nodes /= nodes.norm(dim=1, keepdim=True)
            edges = (nodes @ nodes.T).clamp(min=0) ** 2
            expected = edges / edges.sum(1, keepdim=True) @ start.flatten(1).double().T
            assert torch.allclose(
                logits.exp().flatten(1).T.double(), expected.clamp(min=1e-7), atol=1e-5
            )
        assert (network(images).softmax(1) - own).abs().max() > 0.01


def test_training_sees_the_logits_of_the_head():
    torch.manual_seed(0)
    plain = small("vgg_tiny").train()
    network = DeepLabV2.from_config({**plain.config, "propagation": 2.0}).train()
    network.load_state_dict(plain.state_dict())
    for each in (plain, network):
        each.backbone.eval()
        each.head.eval()
    images = torch.rand(1, 3, 48, 48)
    assert torch.equal(network(images), plain(images))
    assert not torch.equal(network.eval()(images), plain(images))


def test_networks_saved_before_there_was_propagation_have_none():
    config = small().config
    del config["propagation"]
    assert DeepLabV2.from_config(config).propagation is None
    with pytest.raises(InputError, match="'propagation' is a power of 1 or more"):
        small(propagation=0.5)
