import pytest
import torch
import torch.nn.functional as F

from pgnn_geo.errors import InputError
from pgnn_geo.graph import complete_edge_index
from pgnn_geo.nn import ComplementaryBlock

PTR = torch.tensor([0, 3, 5])
BATCH = torch.tensor([0, 0, 0, 1, 1])


def test_fresh_block_is_the_identity_and_learns():
    torch.manual_seed(0)
    block = ComplementaryBlock(8, heads=2, num_classes=3)
    assert str(block) == "ComplementaryBlock(8, heads=2)"
    x = torch.randn(5, 8, 4, 4)
    target = torch.randn_like(x)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for step in range(3):
        out = block(x, batch=BATCH, node_class=torch.tensor([0, 1, 1, 0, 2]))
        assert torch.equal(out, x) == (step == 0)
        optimizer.zero_grad()
        F.mse_loss(out, target).backward()
        optimizer.step()
    # By the third step, gradients reach everything, the way into the attention included.
    assert all(p.grad is not None and p.grad.ne(0).any() for p in block.parameters())


@pytest.mark.parametrize("options", [{}, {"conv_groups": 8}, {"kernel_size": 1}])
def test_by_hand(options):
    torch.manual_seed(0)
    block = ComplementaryBlock(8, heads=2, zero_init=False, **options).double()
    x = torch.randn(5, 8, 3, 3, dtype=torch.double)
    h = x + block.attention(x, batch=BATCH)
    y = F.conv2d(h, block.conv.weight, block.conv.bias, padding="same", groups=block.conv.groups)
    expected = h + F.layer_norm(y, y.shape[1:])
    torch.testing.assert_close(block(x, batch=BATCH), expected)
    edge_index = complete_edge_index(PTR)
    torch.testing.assert_close(block(x, edge_index), expected)
    out, (edges, alpha) = block(x, batch=BATCH, return_attention_weights=True)
    torch.testing.assert_close(out, expected)
    assert torch.equal(edges, edge_index) and alpha.shape == (13, 2)


def test_equivariance_and_groups():
    torch.manual_seed(0)
    block = ComplementaryBlock(8, heads=2, num_classes=3, zero_init=False).double()
    x = torch.randn(5, 8, 2, 2, dtype=torch.double)
    node_class = torch.tensor([0, 1, 1, 0, 2])
    out = block(x, batch=BATCH, node_class=node_class)
    order = torch.tensor([4, 3, 2, 0, 1])
    batch = torch.tensor([0, 0, 1, 1, 1])
    torch.testing.assert_close(
        block(x[order], batch=batch, node_class=node_class[order]), out[order]
    )
    x[4] += 1
    changed = block(x, batch=BATCH, node_class=node_class) != out
    assert changed[3:].flatten(1).any(1).all() and not changed[:3].any()


def test_compiles_and_takes_nothing():
    block = ComplementaryBlock(8, heads=2, zero_init=False)
    x = torch.randn(6, 8, 2, 2)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, batch_size=2), block(x, batch_size=2))
    assert block(x[:0], batch=BATCH[:0]).shape == (0, 8, 2, 2)


def test_bad_input():
    block = ComplementaryBlock(8, heads=2)
    with pytest.raises(InputError, match=r"`x`: expected \[V, 8, p, p\]"):
        block(torch.randn(5, 8), batch=BATCH)
    with pytest.raises(InputError, match="`x`"):
        block(torch.randn(5, 7, 2, 2), batch=BATCH)
    with pytest.raises(InputError, match="`kernel_size`"):
        ComplementaryBlock(8, kernel_size=2)
