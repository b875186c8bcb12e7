"""Winograd's minimal filtering against PyTorch's convolution."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from pgnn_geo.nn import build_backbone
from pgnn_geo.nn.winograd import (
    INPUT_TRANSFORM,
    OUTPUT_TRANSFORM,
    WEIGHT_TRANSFORM,
    WinogradConv2d,
    transform_weight,
    winograd_conv2d,
    with_winograd,
)


def wide(dilation: int = 1) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(128, 256, 3, padding=dilation, dilation=dilation)


def test_minimal_filtering_is_exact_in_one_dimension():
    signal, kernel = torch.randn(6, dtype=torch.double), torch.randn(3, dtype=torch.double)
    before, weights, after = (
        torch.tensor(each, dtype=torch.double)
        for each in (INPUT_TRANSFORM, WEIGHT_TRANSFORM, OUTPUT_TRANSFORM)
    )
    out = after @ ((weights @ kernel) * (before @ signal))
    assert_close(out, torch.stack([signal[i : i + 3] @ kernel for i in range(4)]))


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    dilation=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_is_pytorch_s_convolution(count, channels, size, dilation, bias, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.double, generator=generator)

    x, weight = draw(count, channels[0], *size), draw(channels[1], channels[0], 3, 3)
    offset = draw(channels[1]) if bias else None
    out = winograd_conv2d(x, transform_weight(weight), offset, dilation)
    assert_close(out, F.conv2d(x, weight, offset, padding=dilation, dilation=dilation))


@pytest.mark.parametrize(("dilation", "side"), [(1, 16), (1, 45), (2, 16), (2, 33)])
def test_float32_differs_by_little(dilation, side):
    conv = wide(dilation)
    fast, x = WinogradConv2d.of(conv), torch.randn(2, 128, side, side)
    with torch.inference_mode():
        out, wanted = fast(x), conv(x)
    assert not out.equal(wanted)  # it was Winograd's
    assert (out - wanted).abs().max() < 2e-4 * wanted.std()
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(128, 256, 3),  # padding
        nn.Conv2d(128, 256, 3, padding=1, stride=2),
        nn.Conv2d(128, 256, 3, padding=3, dilation=3),
        nn.Conv2d(256, 256, 3, padding=1, groups=2),
        nn.Conv2d(128, 256, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(128, 128, 3, padding=1),  # narrow
    ],
)
def test_other_convolutions_are_pytorch_s(conv):
    x = torch.randn(1, conv.in_channels, 16, 16)
    with torch.no_grad():
        assert WinogradConv2d.of(conv)(x).equal(conv(x))


def test_trains_as_pytorch_s():
    conv, x = wide(), torch.randn(1, 128, 16, 16)
    fast = WinogradConv2d.of(copy.deepcopy(conv))
    for each in (conv, fast):
        each(x).square().mean().backward()
    assert fast.weight.grad is not None
    assert fast.weight.grad.equal(conv.weight.grad)


def test_small_maps_and_bfloat16_are_pytorch_s():
    conv = wide()
    fast = WinogradConv2d.of(conv)
    with torch.no_grad():
        small = torch.randn(4, 128, 12, 12)
        assert fast(small).equal(conv(small))
        with torch.autocast("cpu", torch.bfloat16):
            large = torch.randn(1, 128, 16, 16)
            assert fast(large).equal(conv(large))


def test_changed_weights_are_noticed():
    fast, x = WinogradConv2d.of(wide()), torch.randn(1, 128, 16, 16)
    with torch.no_grad():
        first = fast(x)
        fast.weight.mul_(2)
        assert_close(fast(x) - fast.bias.view(-1, 1, 1), 2 * (first - fast.bias.view(-1, 1, 1)))
        for value in (1.0, 2.0, 0.0):  # memory of a weight that is gone may serve the next but one
            fast.weight = None
            fast.weight = nn.Parameter(torch.full((256, 128, 3, 3), value))
            wanted = nn.functional.conv2d(x, fast.weight, fast.bias, padding=1)
            assert_close(fast(x), wanted, rtol=1e-3, atol=1e-2)


def test_changes_of_inference_tensors_are_noticed():
    with torch.inference_mode():
        fast, x = WinogradConv2d.of(wide()), torch.randn(1, 128, 16, 16)
        fast(x)
        fast.weight.zero_()
        assert fast(x).equal(fast.bias.view(-1, 1, 1).expand(1, 256, 16, 16))


def test_copies_and_files_leave_out_transformed_weights():
    fast = WinogradConv2d.of(wide())
    with torch.no_grad():
        fast(torch.randn(1, 128, 16, 16))
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    assert buffer.tell() < 1.1 * 4 * sum(each.numel() for each in fast.parameters())
    assert copy.deepcopy(fast)._kept is None
    assert fast._kept is not None


def test_exported_graphs_have_plain_convolutions():
    fast = WinogradConv2d.of(wide()).eval()
    with torch.no_grad():
        program = torch.export.export(fast, (torch.randn(1, 128, 16, 16),))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.aten.conv2d.default]


def test_names_of_parameters_stay():
    network = nn.Sequential(wide(), nn.ReLU(), nn.Sequential(nn.Conv2d(256, 8, 1)))
    names, weight = list(network.state_dict()), network[0].weight
    assert with_winograd(network) is network
    assert list(network.state_dict()) == names
    assert network[0].weight is weight
    assert type(network[2][0]) is nn.Conv2d


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_backbones_have_the_features_of_torchvision_s_convolutions(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, weights=None, output_stride=8).eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        fast = backbone(images)
    plain = backbone(images).detach()  # with gradients
    assert not fast.equal(plain)
    assert_close(fast, plain, rtol=0, atol=1e-3 * plain.std().item())
