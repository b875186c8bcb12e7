"""Draw which patches of the other photos a patch attends to.

    python examples/explain_edges.py --class-name bird --out edges.png
    python examples/explain_edges.py --root VOCdevkit/VOC2012 --model runs/voc/model.pt

Without --root, the photos are those of the embedded data set; without --model, a small P-GNN is
trained on them first. The weights come from the layer itself (return_attention_weights=True), and
are checked against PyG's AttentionExplainer, which sees the same layer as message passing.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.explain import AttentionExplainer, Explainer

from pgnn_geo import complete_edge_index
from pgnn_geo.datasets import (
    VOC2012,
    ClassGroupSampler,
    Shapes,
    SquareTransform,
    TrainTransform,
    collate_groups,
)
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.losses import classification_loss
from pgnn_geo.nn import PGNN

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--root", help="a VOC2012 folder (default: the embedded data set)")
parser.add_argument("--data", default="data/shapes", help="where the embedded data set is made")
parser.add_argument("--classes", help="comma-separated names that restrict the task")
parser.add_argument("--model", help="a trained model (default: train a small one)")
parser.add_argument("--epochs", type=int, default=10, help="of that training")
parser.add_argument("--size", type=int, default=96, help="side of the photos in pixels")
parser.add_argument("--class-name", help="class of the group (default: the first)")
parser.add_argument("--photos", type=int, default=3, help="photos in the group")
parser.add_argument("--patch", type=int, help="patch of the first photo (default: the strongest)")
parser.add_argument("--lines", type=int, default=5, help="strongest edges drawn")
parser.add_argument("--out", type=Path, default=Path("edges.png"))
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.manual_seed(args.seed)

if args.root:
    voc = partial(VOC2012, args.root, "train", args.classes)
else:
    voc = partial(Shapes, args.data, "train", size=args.size)
photos = voc(transform=SquareTransform(args.size))
tags, classes = photos.tags, photos.classes


def train() -> PGNN:
    """Train a small P-GNN on the tags."""
    model = PGNN("vgg_tiny", len(classes), weights=None, output_stride=8)
    sampler = ClassGroupSampler(tags, groups_per_batch=4, seed=args.seed)
    loader = DataLoader(
        voc(transform=TrainTransform(args.size)),
        batch_sampler=sampler,
        collate_fn=partial(collate_groups, group_size=3),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(1, args.epochs + 1):
        sampler.set_epoch(epoch)
        total = 0.0
        for batch in loader:
            out = model(batch["image"], group=batch["group"])
            loss = classification_loss(out.logits, batch["tags"], out.backbone_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"Epoch: {epoch:02d}, Loss: {total / len(sampler):.4f}")
    return model.eval()


class Layer(torch.nn.Module):
    """The first layer's weighted edges, in the form that explainers call."""

    def __init__(self, model: PGNN) -> None:
        super().__init__()
        self.conv = model.blocks[0].attention

    def forward(self, x: Tensor, edge_index: Tensor, node_class: Tensor) -> Tensor:
        """Return one number per graph."""
        return self.conv(x, edge_index, node_class=node_class).mean().view(1, 1)


model = load_attention_model(args.model).model if args.model else train()
name = args.class_name or classes[0]
members = (tags[:, classes.index(name)] > 0).nonzero().flatten()[: args.photos].tolist()
images = torch.stack([torch.as_tensor(photos[i]["image"]) for i in members])

with torch.no_grad():
    scores = model(images).scores[0, classes.index(name)]  # [h, w]
    batch = model.builder(model.backbone(images))
    _, (edge_index, alpha) = model.blocks[0](
        batch.x,
        batch=batch.batch,
        node_class=batch.node_class,
        return_attention_weights=True,
    )
explainer = Explainer(
    Layer(model),
    AttentionExplainer(reduce="mean"),
    explanation_type="model",
    edge_mask_type="object",
    model_config={"mode": "regression", "task_level": "graph", "return_type": "raw"},
)
edges = complete_edge_index(batch.ptr)
explanation = explainer(batch.x, edges, node_class=batch.node_class)
gap = (explanation.edge_mask - alpha.mean(dim=1)).abs().max()
print(f"{batch.num_nodes} patches, {edges.size(1)} edges; explainer and layer differ by {gap:.0e}")

# Boxes of patches in pixels of the square photos, and the strongest patch of the first photo.
scale = args.size / torch.tensor([*scores.shape]).flip(0).repeat(2)
boxes = batch.pos * scale
patches = (batch.image_batch == 0).nonzero().flatten().tolist()
strength = [scores[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in batch.pos[patches].long().tolist()]
target = args.patch if args.patch is not None else int(torch.stack(strength).argmax())
weights = torch.zeros(batch.num_nodes)
incoming = edge_index[1] == target
weights[edge_index[0, incoming]] = alpha[incoming].mean(dim=1)
others = weights * (batch.image_batch != 0)
strongest = others.topk(min(args.lines, int((others > 0).sum()))).indices.tolist()

figure = Figure(figsize=(3 * len(images), 3.3), layout="constrained")
axes = figure.subplots(1, len(images), squeeze=False)[0]
for i, (axis, image) in enumerate(zip(axes, images, strict=True)):
    axis.imshow(image.permute(1, 2, 0).clamp(0, 1))
    axis.set_axis_off()
    mine = (batch.image_batch == i).nonzero().flatten().tolist()
    axis.set_title(f"photo {members[i]}: {weights[mine].sum():.0%}")
    for node in mine:
        x1, y1, x2, y2 = boxes[node].tolist()
        shade = 0.8 * (1 - float(weights[node] / weights.max()) ** 0.5)
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, color="black", alpha=shade, lw=0))
    if i == 0:
        x1, y1, x2, y2 = boxes[target].tolist()
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="red", lw=2))
for node in strongest:
    (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes[target].tolist(), boxes[node].tolist()
    line = ConnectionPatch(
        ((x1 + x2) / 2, (y1 + y2) / 2),
        ((u1 + u2) / 2, (v1 + v2) / 2),
        "data",
        "data",
        axesA=axes[0],
        axesB=axes[int(batch.image_batch[node])],
        color="red",
        lw=0.5 + 3 * float(weights[node] / weights.max()),
        alpha=0.7,
    )
    figure.add_artist(line)
    photo = members[int(batch.image_batch[node])]
    print(f"patch {target} <- patch {node} of photo {photo}: {others[node]:.4f}")
figure.suptitle(f"{name}: where the red patch looks")
args.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(args.out, dpi=150)
print(f"{args.out} drawn")
