import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.nn import ClassEmbedding, ComplementaryConv, checks
from pgnn_geo.nn.class_embedding import ClassRelation


@pytest.mark.parametrize("positions", [(), (2,), (3, 2)])
def test_rows_are_added(positions):
    torch.manual_seed(0)
    embedding = ClassEmbedding(3, 5)
    assert str(embedding) == "ClassEmbedding(3, 5)"
    assert embedding.weight.shape == (4, 5)
    x = torch.randn(3, 5, *positions)
    out = embedding(x, torch.tensor([0, 3, 0]))
    row = (out - x).flatten(2)[..., 0] if positions else out - x
    torch.testing.assert_close(row, embedding.weight[[0, 3, 0]])
    torch.testing.assert_close(out - x, row.view(3, 5, *[1 for _ in positions]).expand_as(x))
    out[0].sum().backward()
    size = torch.Size(positions).numel()
    assert embedding.weight.grad[0].eq(size).all() and embedding.weight.grad[1:].eq(0).all()
    before = embedding.weight.detach().clone()
    embedding.reset_parameters()
    assert not torch.equal(embedding.weight, before)


def test_bad_classes():
    for bad in ([0, 4], [-1, 0]):
        with pytest.raises(InputError, match=r"0 \(background\) to 3"):
            checks.class_range(torch.tensor(bad), 3)
    for node_class in (torch.tensor([0.0, 1.0]), torch.tensor([[0, 1]]), torch.tensor([0])):
        with pytest.raises(InputError, match=r"integers \[2\]"):
            ClassEmbedding(3, 5)(torch.randn(2, 5), node_class)
    for sizes in ((0, 5), (3, 0)):
        with pytest.raises(InputError):
            ClassEmbedding(*sizes)


def test_relation_by_hand():
    relation = ClassRelation(heads=1)
    assert str(relation) == "ClassRelation(heads=1)"
    node_class = torch.tensor([0, 1, 1, 3])
    pairs = node_class.unsqueeze(1), node_class.unsqueeze(0)
    assert relation(*pairs).eq(0).all()  # nothing at first
    with torch.no_grad():
        relation.weight[:, 0] = torch.tensor([5.0, 7.0, 9.0])
    bias = relation(*pairs)
    expected = [[9, 0, 0, 0], [7, 5, 5, 0], [7, 5, 5, 0], [7, 0, 0, 5]]
    assert bias.squeeze(-1).tolist() == expected

    # Foreground classes may be renamed; background is background.
    renamed = torch.tensor([0, 3, 1, 2])[node_class]
    assert torch.equal(relation(renamed.unsqueeze(1), renamed.unsqueeze(0)), bias)


def test_relation_is_a_bias_on_the_logits():
    torch.manual_seed(0)
    conv = ComplementaryConv(8, heads=2, num_classes=3).double()
    torch.nn.init.normal_(conv.class_module.weight)
    x = torch.randn(4, 8, dtype=torch.double)
    node_class = torch.tensor([0, 1, 1, 3])
    _, (_, alpha) = conv(x, batch_size=1, node_class=node_class, return_attention_weights=True)
    query, key = (lin(x).view(4, 2, 4) for lin in (conv.lin_query, conv.lin_key))
    same, to_background, background = conv.class_module.weight
    logits = torch.einsum("ahd,bhd->hab", query, key) / 2
    logits = logits + torch.stack(
        [
            torch.stack([background, *[torch.zeros_like(same)] * 3], -1),
            torch.stack([to_background, same, same, torch.zeros_like(same)], -1),
            torch.stack([to_background, same, same, torch.zeros_like(same)], -1),
            torch.stack([to_background, torch.zeros_like(same), torch.zeros_like(same), same], -1),
        ],
        dim=1,
    )
    expected = logits.softmax(-1).permute(1, 2, 0).reshape(16, 2)
    torch.testing.assert_close(alpha, expected)


K, NODES, GROUPS, CHANNELS = 4, 8, 64, 16


def tag_accuracy(mode: str | None) -> float:
    """Train a classifier of the group's tag on features that know nothing of it; test it."""
    torch.manual_seed(0)
    num_classes = K if mode == "attention" else None
    conv = ComplementaryConv(CHANNELS, heads=2, num_classes=num_classes)
    head = torch.nn.Linear(CHANNELS, K)
    embedding = ClassEmbedding(K, CHANNELS)
    classes = torch.zeros(0).long()
    if mode == "query and key inputs":  # what "attention" would be with a free embedding
        for lin in (conv.lin_query, conv.lin_key):
            lin.register_forward_pre_hook(lambda _, args: (embedding(args[0], classes),))
    if mode == "attention":
        torch.nn.init.normal_(conv.class_module.weight)

    def logits() -> tuple[Tensor, Tensor]:
        nonlocal classes
        tags = torch.randint(K, (GROUPS,))
        x = torch.randn(GROUPS * NODES, CHANNELS)
        foreground = torch.rand(GROUPS * NODES) < 0.5
        classes = (tags + 1).repeat_interleave(NODES) * foreground
        x = embedding(x, classes) if mode == "input" else x
        x = x + conv(x, batch_size=GROUPS, node_class=classes)  # as in a block
        out = head(x)
        return out.view(GROUPS, NODES, K).mean(dim=1), tags

    parameters = [*conv.parameters(), *head.parameters(), *embedding.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        F.cross_entropy(*logits()).backward()
        optimizer.step()
    with torch.no_grad():
        batches = [logits() for _ in range(40)]
        return torch.cat([z.argmax(dim=1) == tags for z, tags in batches]).float().mean().item()


def test_leak():
    # 2,560 groups are classified: chance is 0.25 with a standard deviation of 0.009.
    assert abs(tag_accuracy(None) - 1 / K) < 0.03
    assert abs(tag_accuracy("attention") - 1 / K) < 0.03
    assert tag_accuracy("input") > 0.9
    # Queries that know their class pick features by class, which the classifier then reads.
    assert tag_accuracy("query and key inputs") > 0.6
