"""Draw which patches of its own and of other photos a patch attends to.

    python examples/explain_edges.py --class-name bird --out edges.png
    python examples/explain_edges.py --root VOCdevkit/VOC2012 --model runs/voc/pgnn/model

Without --root, the photos are those of the embedded data set; without --model, a small P-GNN is
trained on them first. The weights are those that PyG's AttentionExplainer sees in the layer
(pgnn_geo.inference.explanation.explain_position), and are checked against what the layer returns
itself (return_attention_weights=True).
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from pgnn_geo.datasets import (
    VOC2012,
    ClassGroupSampler,
    Shapes,
    SquareTransform,
    TrainTransform,
    collate_groups,
)
from pgnn_geo.inference.explanation import explain_position
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.labels import MapConfig
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
parser.add_argument("--partners", type=int, default=2, help="other photos in the group")
parser.add_argument("--position", type=float, nargs=2, help="x and y in the photo, in pixels")
parser.add_argument("--lines", type=int, default=5, help="strongest edges drawn")
parser.add_argument("--out", type=Path, default=Path("edges.png"))
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.manual_seed(args.seed)

if args.root:
    voc = partial(VOC2012, args.root, "train", args.classes)
else:
    voc = partial(Shapes, args.data, "train", size=args.size)
photos = voc()
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


model = load_attention_model(args.model).model if args.model else train()
name = args.class_name or classes[0]
photo = int((tags[:, classes.index(name)] > 0).nonzero()[0])
height, width = photos.photo_size(photo)
position = tuple(args.position or (width / 2, height / 2))
maps = MapConfig(size=args.size, output_stride=8)
found = explain_position(model, photos, photo, position, name, args.partners, maps)

members = [photos.image_ids.index(image_id) for image_id in found.image_ids]
square = photos.subset(members).with_transform(SquareTransform(args.size))
images = torch.stack([torch.as_tensor(square[i]["image"]) for i in range(len(square))])
model.backbone.set_output_stride(8)
with torch.no_grad():
    batch = model.builder(model.backbone(images))
    _, (edge_index, alpha) = model.blocks[0].attention(
        batch.x, batch=batch.batch, node_class=batch.node_class, return_attention_weights=True
    )
weights = alpha[edge_index[1] == found.node].mean(dim=1)
gap = (weights - found.weight.flatten()).abs().max()
print(f"{batch.num_nodes} patches, {edge_index.size(1)} edges")
print(f"explainer and layer differ by {gap:.0e}")

grid = found.weight.size(-1)
edges, values = found.strongest(args.lines)
for source, value in zip(edges[0].tolist(), values.tolist(), strict=True):
    image, patch = divmod(source, grid * grid)
    print(f"patch {found.node} <- patch {patch} of {found.image_ids[image]}: {value:.4f}")
args.out.parent.mkdir(parents=True, exist_ok=True)
found.figure(args.lines).savefig(args.out, dpi=150)
print(f"{args.out} drawn")
