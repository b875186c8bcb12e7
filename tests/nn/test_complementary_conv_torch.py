"""The layer under torch's own tools: compile, export, autocast, deterministic mode, odd inputs."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from pgnn_geo.graph import complete_edge_index
from pgnn_geo.nn import ComplementaryConv

SIZES = [4, 2, 3]
PTR = torch.tensor([0, 4, 6, 9])
BATCH = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
PATHS = {
    "edges": {"edge_index": complete_edge_index(PTR)},
    "ragged": {"batch": BATCH, "batch_size": 3, "max_num_nodes": 4},
    "equal": {"batch": torch.arange(3).repeat_interleave(3), "batch_size": 3, "max_num_nodes": 3},
    "sizes only": {"batch_size": 3},
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("positions", [(), (2, 2)])
def test_compile_without_graph_breaks(path, positions):
    torch.manual_seed(0)
    conv = ComplementaryConv(8, heads=2, num_classes=3)
    torch.nn.init.normal_(conv.class_module.weight)
    x = torch.randn(9, 8, *positions, requires_grad=True)
    kwargs = PATHS[path] | {"node_class": torch.arange(9) % 4}
    counter = CompileCounter()
    out = torch.compile(conv, backend=counter, fullgraph=True)(x, **kwargs)
    assert counter.frame_count == 1
    torch.testing.assert_close(out, conv(x, **kwargs))
    torch._dynamo.reset()
    assert torch._dynamo.explain(conv)(x, **kwargs).graph_break_count == 0

    torch._dynamo.reset()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    grad = torch.autograd.grad(compiled(x, **kwargs).pow(2).sum(), [x, *conv.parameters()])
    wanted = torch.autograd.grad(conv(x, **kwargs).pow(2).sum(), [x, *conv.parameters()])
    for a, b in zip(grad, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_compile_with_inductor(path):
    torch.manual_seed(0)
    conv, x = ComplementaryConv(8, heads=2), torch.randn(9, 8, 2)
    out = torch.compile(conv, fullgraph=True)(x, **PATHS[path])
    torch.testing.assert_close(out, conv(x, **PATHS[path]), atol=1e-5, rtol=1e-4)


def test_compile_without_sizes():
    conv, x = ComplementaryConv(8, heads=2), torch.randn(9, 8)
    out = torch.compile(conv, backend="eager")(x, batch=BATCH)  # one graph break
    torch.testing.assert_close(out, conv(x, batch=BATCH))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="`batch_size` and `max_num_nodes`"):
        torch.compile(conv, backend="eager", fullgraph=True)(x, batch=BATCH)


@pytest.mark.parametrize("path", ["ragged", "equal", "sizes only"])
def test_export(path):
    torch.manual_seed(0)
    conv, x = ComplementaryConv(8, heads=2).eval(), torch.randn(9, 8, 2, 2)
    program = torch.export.export(conv, (x,), PATHS[path])
    torch.testing.assert_close(program.module()(x, **PATHS[path]), conv(x, **PATHS[path]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("positions", [(), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(path, positions, dtype):
    torch.manual_seed(0)
    conv = ComplementaryConv(8, heads=2, num_classes=3, beta=True)
    x = torch.randn(9, 8, *positions, requires_grad=True)
    kwargs = PATHS[path] | {"node_class": torch.arange(9) % 4}
    with torch.autocast("cpu", dtype=dtype):
        out = conv(x, **kwargs)
        with_weights, (_, alpha) = conv(x, **kwargs, return_attention_weights=True)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), conv(x, **kwargs), atol=0.05, rtol=0.05)
    torch.testing.assert_close(with_weights, out, atol=0.05, rtol=0.05)
    assert alpha.shape[1] == 2
    out.float().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", PATHS)
def test_half_precision_weights(path, dtype):
    torch.manual_seed(0)
    conv, x = ComplementaryConv(8, heads=2), torch.randn(9, 8)
    expected = conv(x, **PATHS[path])
    out = conv.to(dtype)(x.to(dtype), **PATHS[path])
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("path", PATHS)
def test_non_contiguous(path):
    torch.manual_seed(0)
    conv = ComplementaryConv(8, heads=2)
    x = torch.randn(3, 3, 9, 8).permute(2, 3, 0, 1)
    wide = torch.randn(9, 16)[:, ::2]
    for t in (x, wide):
        torch.testing.assert_close(conv(t, **PATHS[path]), conv(t.contiguous(), **PATHS[path]))


@pytest.mark.parametrize("positions", [(), (2, 2)])
def test_zero_size(positions):
    conv = ComplementaryConv(8, heads=2, num_classes=2)
    x = torch.randn(0, 8, *positions, requires_grad=True)
    empty = torch.empty(0, dtype=torch.long)
    for kwargs in (
        {"edge_index": empty.view(1, 0).expand(2, 0)},
        {"batch": empty},
        {"batch": empty, "batch_size": 2, "max_num_nodes": 3},
        {"batch_size": 3},
    ):
        out, (edge_index, alpha) = conv(
            x, **kwargs, node_class=empty, return_attention_weights=True
        )
        assert out.shape == x.shape and edge_index.shape == (2, 0) and alpha.shape == (0, 2)
        conv(x, **kwargs, node_class=empty).sum().backward()
    # Nodes without edges receive no message.
    nodes = torch.randn(3, 8, *positions)
    none = conv(nodes, torch.empty(2, 0, dtype=torch.long), node_class=torch.zeros(3).long())
    assert torch.equal(none, conv.lin_out.bias.view(1, 8, *[1 for _ in positions]).expand_as(none))


@pytest.mark.parametrize("path", PATHS)
def test_deterministic_mode(path):
    torch.use_deterministic_algorithms(True)
    try:
        conv = ComplementaryConv(8, heads=2)
        x = torch.randn(9, 8, requires_grad=True)
        runs: list[Tensor] = []
        for _ in range(2):
            runs += torch.autograd.grad(conv(x, **PATHS[path]).pow(2).sum(), x)
        assert torch.equal(*runs)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("path", PATHS)
def test_functional_gradients(path):
    torch.manual_seed(0)
    conv, x = ComplementaryConv(8, heads=2), torch.randn(9, 8)
    weights = dict(conv.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(conv, weights, (x,), PATHS[path]).pow(2).sum()

    grads = torch.func.grad(loss)(weights)
    for name, grad in zip(
        weights, torch.autograd.grad(loss(weights), weights.values()), strict=True
    ):
        torch.testing.assert_close(grads[name], grad)
