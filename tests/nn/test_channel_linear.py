"""The layer's linear maps against `torch.nn.functional.linear`, in every layout."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from pgnn_geo.nn.channel_linear import ChannelLinear


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 5),
    channels=st.integers(1, 5),
    positions=st.sampled_from([(), (1,), (4,), (2, 3), (2, 1, 2)]),
    last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_linear(n, channels, positions, last, dtype):
    torch.manual_seed(0)
    linear = ChannelLinear(channels, 3).to(dtype)
    x = torch.randn(n, channels, *positions, dtype=dtype)
    if last and positions:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    out = linear(x)
    expected = F.linear(x.movedim(1, -1), linear.weight, linear.bias).movedim(-1, 1)
    torch.testing.assert_close(out, expected)
    weight = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)
    inputs = [x, *linear.parameters()]
    for a, b in zip(
        torch.autograd.grad((out * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("last", [False, True])
def test_output_is_laid_out_as_the_input(last):
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(40, 64, 3, 3).contiguous(memory_format=layout)
    assert ChannelLinear(64, 32)(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 2), (3, 4, 2, 2)])
def test_gradcheck(shape):
    linear = ChannelLinear(4, 2).double()
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    assert gradcheck(linear, x) and gradgradcheck(linear, x)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 2), (3, 4, 2, 2)])
def test_channels_from_the_first_input(shape):
    linear = ChannelLinear(-1, 2, bias=False)
    assert linear(torch.randn(shape)).shape == (3, 2, *shape[2:])
    assert linear.in_channels == 4 and linear.weight.shape == (2, 4)
