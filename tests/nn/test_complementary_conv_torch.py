"""The layer under torch's own tools: compile, export, autocast, deterministic mode, odd inputs."""

import copy

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.checkpoint import checkpoint

from pgnn_geo.graph import complete_edge_index
from pgnn_geo.nn import ComplementaryConv, edge_attention

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
    counter = CompileCounterWithBackend("aot_eager")
    out = torch.compile(conv, backend=counter, fullgraph=True)(x, **kwargs)  # or it raises
    assert counter.frame_count == 1
    expected = conv(x, **kwargs)
    torch.testing.assert_close(out, expected)
    grad = torch.autograd.grad(out.pow(2).sum(), [x, *conv.parameters()])
    wanted = torch.autograd.grad(expected.pow(2).sum(), [x, *conv.parameters()])
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
    conv = ComplementaryConv(8, heads=2, num_classes=3)
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


@pytest.fixture(params=[0, 10**9], ids=["edge_attention", "messages"])
def _least(request, monkeypatch):
    monkeypatch.setattr(edge_attention, "LEAST", request.param)


def layer_and_nodes(positions: tuple[int, ...], n: int = 9) -> tuple[ComplementaryConv, Tensor]:
    torch.manual_seed(0)
    conv = ComplementaryConv(4, heads=2, num_classes=3).double()
    torch.nn.init.normal_(conv.class_module.weight)
    return conv, torch.randn(n, 4, *positions, dtype=torch.double)


CLASSES = {"node_class": torch.arange(9) % 4}


@pytest.mark.usefixtures("_least")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("positions", [(), (2, 2), (9,)])
def test_vmap_over_nodes_and_weights(path, positions):
    conv, _ = layer_and_nodes(positions)
    kwargs = PATHS[path] | CLASSES
    many = torch.randn(3, 9, 4, *positions, dtype=torch.double)
    out = torch.vmap(lambda x: conv(x, **kwargs))(many)
    torch.testing.assert_close(out, torch.stack([conv(x, **kwargs) for x in many]))

    stacked = {
        name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in conv.named_parameters()
    }

    def call(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(conv, weights, (many[0],), kwargs)

    out = torch.vmap(call)(stacked)
    each = [call({name: p[i] for name, p in stacked.items()}) for i in range(2)]
    torch.testing.assert_close(out, torch.stack(each))


@pytest.mark.usefixtures("_least")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("positions", [(), (2, 2), (9,)])
def test_forward_derivatives(path, positions):
    conv, x = layer_and_nodes(positions)
    kwargs = PATHS[path] | CLASSES
    tangent = torch.randn_like(x)
    out, derivative = torch.func.jvp(lambda x: conv(x, **kwargs), (x,), (tangent,))
    torch.testing.assert_close(out, conv(x, **kwargs))
    step = 1e-6 * tangent
    numerical = (conv(x + step, **kwargs) - conv(x - step, **kwargs)) / 2e-6
    torch.testing.assert_close(derivative, numerical, atol=1e-6, rtol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        dual = conv(torch.autograd.forward_ad.make_dual(x, tangent), **kwargs)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, derivative)


@pytest.mark.usefixtures("_least")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("positions", [(), (2,)])
def test_many_gradients_at_once(path, positions):
    conv, x = layer_and_nodes(positions)
    kwargs = PATHS[path] | CLASSES
    many, each = (
        torch.autograd.functional.jacobian(lambda x: conv(x, **kwargs), x, vectorize=vectorize)
        for vectorize in (True, False)
    )
    torch.testing.assert_close(many, each)


@pytest.mark.usefixtures("_least")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("positions", [(), (9,)])
def test_fake_tensors(path, positions):
    conv, x = layer_and_nodes(positions)
    mode = FakeTensorMode()
    fake = copy.deepcopy(conv)
    for name, p in conv.named_parameters():
        owner, _, attribute = name.rpartition(".")
        parameter = torch.nn.Parameter(mode.from_tensor(p.detach()))
        setattr(fake.get_submodule(owner), attribute, parameter)
    kwargs = {
        key: mode.from_tensor(value) if isinstance(value, Tensor) else value
        for key, value in (PATHS[path] | CLASSES).items()
    }
    with mode:
        out = fake(mode.from_tensor(x), **kwargs)
    assert isinstance(out, FakeTensor) and out.shape == x.shape and out.dtype == x.dtype


@pytest.mark.usefixtures("_least")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("path", ["edges", "equal", "sizes only"])
def test_trace(path):
    conv, x = layer_and_nodes((2, 2))
    (name, value), *rest = PATHS[path].items()

    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x, **{name: value}, **dict(rest), **CLASSES)

    traced = torch.jit.trace(Call(), x)
    torch.testing.assert_close(traced(2 * x), conv(2 * x, **PATHS[path], **CLASSES))


@pytest.mark.parametrize("path", ["edges", "sizes only", "hints"])
@pytest.mark.parametrize("positions", [(), (2, 2)])
def test_export_of_any_number_of_nodes(path, positions):
    # Nothing of the example's size may stay in the graph: it is run at fifteen times as many nodes.
    torch.manual_seed(0)
    conv = ComplementaryConv(512, heads=8).eval()
    nodes = torch.export.Dim("nodes", min=2, max=4096)

    def inputs(n: int) -> tuple[dict, dict]:
        groups = torch.arange(2).repeat_interleave(n // 2)
        return {
            "edges": ({"edge_index": complete_edge_index(torch.tensor([0, n]))}, {1: None}),
            "sizes only": ({"batch_size": 1}, {}),
            "hints": ({"batch": groups, "batch_size": 2, "max_num_nodes": 200}, {0: nodes}),
        }[path]

    kwargs, _ = inputs(20)
    dynamic: dict = dict.fromkeys(kwargs)
    if path == "edges":
        dynamic["edge_index"] = {1: torch.export.Dim("edges", min=2, max=4096**2)}
    if path == "hints":
        dynamic["batch"] = {0: nodes}
    program = torch.export.export(
        conv,
        (torch.randn(20, 512, *positions),),
        kwargs,
        dynamic_shapes={"x": {0: nodes}, **dynamic},
    )
    x, (kwargs, _) = torch.randn(300, 512, *positions), inputs(300)
    torch.testing.assert_close(
        program.module()(x, **kwargs), conv(x, **kwargs), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("path", PATHS)
def test_activation_checkpoint(path):
    conv, x = layer_and_nodes((2, 2))
    x.requires_grad_()
    kwargs = PATHS[path] | CLASSES
    out = checkpoint(lambda x: conv(x, **kwargs), x, use_reentrant=False)
    grads = torch.autograd.grad(out.pow(2).sum(), [x, *conv.parameters()])
    wanted = torch.autograd.grad(conv(x, **kwargs).pow(2).sum(), [x, *conv.parameters()])
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_twice_over():
    conv, x = layer_and_nodes(())
    x.requires_grad_()
    plain = ComplementaryConv(4, heads=2).double()
    plain.load_state_dict({k: v for k, v in conv.state_dict().items() if "class" not in k})
    loss = plain(x, batch_size=3).pow(2).sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], first)
    torch.testing.assert_close(torch.autograd.grad(loss, x, create_graph=True)[0], first)


@pytest.mark.parametrize("path", ["edges", "sizes only"])
def test_onnx(path, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    conv, x = ComplementaryConv(8, heads=2).eval(), torch.randn(9, 8, 2, 2)
    kwargs = PATHS[path]
    file = tmp_path / "conv.onnx"
    torch.onnx.export(conv, (x,), file, kwargs=kwargs, dynamo=True, verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feeds = {"x": x.numpy()}
    if path == "edges":
        feeds["edge_index"] = kwargs["edge_index"].numpy()
    (out,) = session.run(None, feeds)
    torch.testing.assert_close(torch.from_numpy(out), conv(x, **kwargs), atol=1e-5, rtol=1e-5)
