import pytest
import torch
from torch_geometric.utils import scatter

from pgnn_geo.errors import InputError
from pgnn_geo.graph import PatchGraphBuilder
from pgnn_geo.nn import PGNN
from pgnn_geo.nn.decoder import activate


def tiny(**options):
    torch.manual_seed(0)
    model = PGNN("vgg_tiny", 4, weights=None, output_stride=8, heads=4, **options).eval()
    for block in model.blocks:  # a fresh block is the identity: give it something to say
        torch.nn.init.normal_(block.attention.lin_out.weight, std=0.05)
        torch.nn.init.normal_(block.norm.weight)
    return model


@pytest.mark.parametrize("height, width", [(64, 64), (57, 90)])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_shapes_and_ranges(layers, height, width):
    model = tiny(layers=layers)
    result = model(torch.rand(4, 3, height, width), group=torch.tensor([0, 0, 1, 1]))
    h, w = -(-height // 8), -(-width // 8)
    assert result.attention.shape == result.scores.shape == (4, 4, h, w)
    assert result.attention.min() >= 0 and result.attention.max() <= 1
    torch.testing.assert_close(result.scores.mean(dim=(2, 3)), result.logits)
    assert (result.backbone_logits is None) == (result.batch is None) == (layers == 0)


def test_a_fresh_graph_changes_nothing():
    torch.manual_seed(0)
    model = PGNN("vgg_tiny", 4, weights=None, output_stride=8)
    images = torch.rand(3, 3, 64, 64)
    features = model.backbone(images)
    torch.testing.assert_close(
        model(images).scores, model.decoder(features)[0], rtol=1e-4, atol=1e-5
    )


def test_groups_never_mix_and_members_do():
    model, images = tiny(), torch.rand(4, 3, 64, 64)
    group = torch.tensor([0, 0, 1, 1])
    changed = images.clone()
    changed[3] = torch.rand(3, 64, 64)
    before, after = model(images, group=group).scores, model(changed, group=group).scores
    torch.testing.assert_close(before[:2], after[:2])
    assert (before[2] - after[2]).abs().max() > 1e-4  # its partner changed


def test_order_of_images_in_a_group_does_not_matter():
    model, images = tiny().double(), torch.rand(3, 3, 64, 64, dtype=torch.double)
    order = torch.tensor([2, 0, 1])
    scores = model(images).scores
    torch.testing.assert_close(model(images[order]).scores, scores[order], rtol=1e-9, atol=1e-10)


def test_tags_only_hide_maps():
    model, images = tiny(), torch.rand(2, 3, 64, 64)
    tags = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])
    free, tagged = model(images), model(images, tags=tags)
    torch.testing.assert_close(free.logits, tagged.logits)
    torch.testing.assert_close(free.attention * tags[:, :, None, None], tagged.attention)


def test_boxes_as_nodes():
    model = tiny(box_size=3)
    boxes = [torch.tensor([[0.0, 0, 4, 4], [2, 2, 8, 8]]), torch.zeros(0, 4)]
    classes = [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.long)]
    result = model(torch.rand(2, 3, 64, 64), boxes=boxes, box_class=classes)
    assert result.attention.shape == (2, 4, 8, 8)
    assert result.batch.node_class.tolist() == [1, 2, 0, 0]


def test_the_first_boxes_are_the_nodes():
    images = torch.rand(2, 3, 64, 64)
    boxes = [torch.tensor([[0.0, 0, 4, 4], [2, 2, 8, 8], [1, 1, 3, 3]]), torch.zeros(0, 4)]
    classes = [torch.tensor([1, 2, 3]), torch.zeros(0, dtype=torch.long)]
    model = tiny(box_size=3, top_k=2)
    result = model(images, boxes=boxes, box_class=classes)
    assert result.batch.node_class.tolist() == [1, 2, 0, 0]
    first = [own[:2] for own in boxes], [own[:2] for own in classes]
    expected = tiny(box_size=3)(images, boxes=first[0], box_class=first[1])
    assert torch.equal(result.scores, expected.scores)
    assert model.needs_boxes and not tiny().needs_boxes and not tiny(layers=0).needs_boxes
    assert model(images, boxes=boxes).batch.node_class.eq(0).all()  # classes may be missing


def test_classes_of_nodes_from_the_head_before_the_graph():
    model, images = tiny(class_embedding="attention"), torch.rand(2, 3, 57, 90)
    torch.nn.init.normal_(model.blocks[0].attention.class_module.weight)
    tags = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])
    plain = model(images, tags=tags)
    assert plain.batch.node_class.eq(0).all()
    assert model.set_node_classes("maps") is model and model.config["node_classes"] == "maps"
    result = model(images, tags=tags)
    maps = activate(result.backbone_scores, "relu", tags)
    patches = PatchGraphBuilder(grid=4)(maps).x  # [V, K, p, p]
    best, label = patches.mean(dim=(2, 3)).max(dim=1)
    expected = torch.where(best > 0.3, label + 1, 0)
    assert 0 < (expected > 0).sum() and torch.equal(result.batch.node_class, expected)
    assert set(expected[:16].tolist()) <= {0, 1, 4} and set(expected[16:].tolist()) <= {0, 2}
    assert (result.scores - plain.scores).abs().max() > 1e-4
    torch.testing.assert_close(result.backbone_scores, plain.backbone_scores)
    assert model(images).batch.node_class.eq(0).all()  # not without tags
    given = torch.randint(5, (32,))
    assert torch.equal(model(images, tags=tags, node_class=given).batch.node_class, given)


def test_no_classes_unless_asked_for():
    model, tags = tiny(node_classes="maps"), torch.ones(2, 4)
    assert not any("class" in name for name, _ in model.named_modules())
    assert model(torch.rand(2, 3, 64, 64), tags=tags).batch.node_class.eq(0).all()


def test_one_embedding_is_added_to_the_nodes_before_the_first_block():
    model = tiny(class_embedding="input", layers=2)
    names = [name for name, _ in model.named_parameters() if "class" in name]
    assert names == ["class_embedding.weight"]
    features = torch.randn(2, model.backbone.out_channels, 8, 8)
    node_class = torch.randint(5, (32,))
    batch = PatchGraphBuilder(grid=4)(features)
    x = batch.x + model.class_embedding.weight[node_class][:, :, None, None]
    for block in model.blocks:
        x = block(x, batch=batch.batch)
    result = model.forward_features(features, node_class=node_class)
    torch.testing.assert_close(result.batch.x, x)
    with pytest.raises(InputError, match=r"0 \(background\) to 4, got 0 to 5"):
        model.forward_features(features, node_class=torch.arange(32) % 6)


def test_edges_are_a_transport_plan_if_asked_for():
    model = tiny(normalize="sinkhorn", layers=2)
    images = torch.rand(3, 3, 64, 64)
    batch = PatchGraphBuilder(grid=4)(model.backbone(images))
    for block in model.blocks:
        batch.x, (edges, alpha) = block(batch.x, batch=batch.batch, return_attention_weights=True)
        torch.testing.assert_close(scatter(alpha, edges[0]), torch.ones(48, 4), rtol=0, atol=0.02)
    torch.testing.assert_close(model(images).batch.x, batch.x)
    plain = tiny(layers=2)
    plain.load_state_dict(model.state_dict())  # nothing more is learned
    assert not torch.allclose(plain(images).scores, model(images).scores, rtol=0, atol=1e-4)


def test_embeddings_of_earlier_checkpoints_are_refused():
    state = tiny(class_embedding="input").state_dict()
    state["blocks.0.attention.class_module.weight"] = state.pop("class_embedding.weight")
    with pytest.raises(InputError, match=r"before version 0\.2 .* train again"):
        tiny(class_embedding="input").load_state_dict(state)


@pytest.mark.parametrize(
    "arguments",
    [{"layers": -1}, {"backbone": "lenet"}, {"top_k": 3}, {"box_size": 3, "top_k": 0}],
)
def test_bad_arguments(arguments):
    with pytest.raises(InputError):
        PGNN(**{"backbone": "vgg_tiny", "weights": None, **arguments})


def test_images_of_wrong_rank():
    with pytest.raises(InputError, match=r"\[B, 3, H, W\]"):
        tiny()(torch.rand(3, 64, 64))
