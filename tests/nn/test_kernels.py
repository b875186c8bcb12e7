import copy

import pytest
import torch
from torch_geometric.nn import MessagePassing

from pgnn_geo.errors import InputError
from pgnn_geo.graph import complete_edge_index
from pgnn_geo.nn import CongenericPropagation
from pgnn_geo.nn.kernels import KERNELS, Kernel


def gauss(cosine: torch.Tensor, power: float) -> torch.Tensor:
    """Of the distance of unit vectors, whose square is 2 - 2 cos."""
    return cosine.sub_(1).mul_(power).exp_()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(KERNELS, "_entries", dict(KERNELS._entries))
    KERNELS.register("own")(Kernel(gauss))


@pytest.mark.parametrize("kernel", ["own", "softmax"])  # which are the same
@pytest.mark.parametrize("power", [1.0, 3.0])
@pytest.mark.parametrize("max_elements", [7, 2**22])
def test_a_kernel_of_ones_own_on_edges_and_groups(
    kernel: str, power: float, max_elements: int
) -> None:
    torch.manual_seed(0)
    x, scores = torch.randn(9, 4, dtype=torch.double), torch.rand(9, 2, dtype=torch.double)
    x.requires_grad_()
    batch = torch.tensor([0] * 5 + [1] * 4)
    unit = x / x.norm(dim=1, keepdim=True)
    weight = (-power * torch.cdist(unit, unit).square() / 2).exp()
    weight = weight * (batch[:, None] == batch)
    expected = weight / weight.sum(dim=1, keepdim=True) @ scores
    gradient = torch.autograd.grad(expected.square().sum(), x)[0]
    layer = CongenericPropagation(kernel, power=power, max_elements=max_elements)
    edges = complete_edge_index(torch.tensor([0, 5, 9]))
    for arguments in ({"batch": batch}, {"edge_index": edges}):
        out = layer(scores, x, **arguments)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x)[0], gradient)
    copied: MessagePassing = copy.deepcopy(layer)
    assert torch.equal(copied(scores, x, batch=batch), layer(scores, x, batch=batch))
    assert f"kernel='{kernel}'" in repr(layer)


def test_softmax_is_attention() -> None:
    torch.manual_seed(0)
    x, scores = torch.randn(9, 4), torch.rand(9, 2)
    unit = torch.nn.functional.normalize(x, dim=1)[None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        unit, unit, scores[None], scale=7.0
    )[0]
    out = CongenericPropagation("softmax", power=7.0)(scores, x, batch=torch.zeros(9).long())
    torch.testing.assert_close(out, expected)


def test_the_linear_kernel_has_no_power() -> None:
    with pytest.raises(InputError, match="power=2"):
        CongenericPropagation("linear", power=2)
