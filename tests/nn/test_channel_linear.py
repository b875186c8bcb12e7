"""The layer's linear maps against `torch.nn.functional.linear`, in every layout."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from pgnn_geo.nn import channel_linear
from pgnn_geo.nn.channel_linear import ChannelLinear, is_channels_last


def outputs_and_gradients(fn, x, linear):
    out = fn(x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return out, *torch.autograd.grad((out * weight).sum(), [x, *linear.parameters()])


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 5),
    channels=st.integers(1, 5),
    positions=st.sampled_from([None, 1, 4]),
    last=st.booleans(),
    large=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_linear(n, channels, positions, last, large, dtype):
    torch.manual_seed(0)
    linear = ChannelLinear(channels, 3).to(dtype)
    x = torch.randn(n, channels, *([] if positions is None else [positions]), dtype=dtype)
    if last and positions is not None:
        x = x.mT.contiguous().mT
    x.requires_grad_()

    def plain(x):
        if x.dim() == 2:
            return F.linear(x, linear.weight, linear.bias)
        return F.linear(x.mT, linear.weight, linear.bias).mT

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel_linear, "LARGE", 1 if large else 10**9)
        found = outputs_and_gradients(linear, x, linear)
    for a, b in zip(found, outputs_and_gradients(plain, x, linear), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("last", [False, True])
def test_large_input_keeps_its_layout(last):
    torch.manual_seed(0)
    linear = ChannelLinear(64, 32)
    x = torch.randn(400, 64, 9)
    x = x.mT.contiguous().mT if last else x
    assert x.numel() > channel_linear.LARGE and is_channels_last(x) == last
    out = linear(x)
    assert is_channels_last(out) == last
    torch.testing.assert_close(out, F.linear(x.mT, linear.weight, linear.bias).mT)
    rows = linear(x.mT.reshape(-1, 64))
    assert rows.is_contiguous()
    torch.testing.assert_close(rows, out.mT.reshape(-1, 32))


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 2)])
def test_gradcheck(shape):
    linear = ChannelLinear(4, 2).double()
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    assert gradcheck(linear, x) and gradgradcheck(linear, x)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 2)])
def test_channels_from_the_first_input(shape):
    linear = ChannelLinear(-1, 2, bias=False)
    assert linear(torch.randn(shape)).shape == (3, 2, *shape[2:])
    assert linear.in_channels == 4 and linear.weight.shape == (2, 4)
