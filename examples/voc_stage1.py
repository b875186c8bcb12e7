"""Stage 1 on PASCAL VOC 2012 in a plain loop: train P-GNN on image tags, measure its seeds.

    python examples/voc_stage1.py --root VOCdevkit/VOC2012 --classes cat,dog --epochs 2

With --layers 0 it trains the baseline, a class activation map of the same backbone. The masks of
the data set are read at the end only, to measure.
"""

import argparse
import time
from functools import partial

import torch
from torch.utils.data import DataLoader, Subset

from pgnn_geo.datasets import (
    VOC2012,
    ClassGroupSampler,
    SquareTransform,
    TrainTransform,
    collate_groups,
    partner_groups,
)
from pgnn_geo.labels import seed_labels
from pgnn_geo.losses import classification_loss
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn import PGNN
from pgnn_geo.precision import has_fast_bfloat16

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--root", required=True, help="the VOC2012 folder")
parser.add_argument("--split", default="train")
parser.add_argument("--classes", help="comma-separated names that restrict the task")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--limit", type=int, help="use the first photos of the split only")
parser.add_argument("--size", type=int, default=256, help="side of the photos in pixels")
parser.add_argument("--layers", type=int, default=1, help="0 for the CAM baseline")
parser.add_argument("--backbone", default="vgg16", choices=["vgg16", "resnet101", "vgg_tiny"])
parser.add_argument("--weights", default="DEFAULT", help="'none' for random weights")
parser.add_argument("--freeze-stages", type=int, default=4)
parser.add_argument("--group-size", type=int, default=3)
parser.add_argument("--groups-per-batch", type=int, default=4)
parser.add_argument("--partners", type=int, default=3, help="groups averaged per photo and class")
parser.add_argument("--background", type=float, default=0.2, help="background score")
parser.add_argument("--lr", type=float, default=1e-4, help="of the backbone")
parser.add_argument("--head-lr", type=float, default=1e-3, help="of the graph and the decoders")
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

torch.manual_seed(args.seed)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=has_fast_bfloat16())

voc = partial(VOC2012, args.root, args.split, args.classes)
photos = voc(transform=TrainTransform(args.size))
assert photos.tags is not None
tags = photos.tags[: args.limit]
sampler = ClassGroupSampler(tags, args.group_size, args.groups_per_batch, seed=args.seed)
loader = DataLoader(
    photos,
    batch_sampler=sampler,
    num_workers=args.workers,
    collate_fn=partial(collate_groups, group_size=args.group_size),
)

num_classes = len(photos.classes)
model = PGNN(
    args.backbone,
    num_classes,
    layers=args.layers,
    weights=None if args.weights == "none" else args.weights,
    freeze_stages=args.freeze_stages,
).to(device)
backbone = [p for p in model.backbone.parameters() if p.requires_grad]
heads = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
optimizer = torch.optim.AdamW(
    [{"params": backbone, "lr": args.lr}, {"params": heads, "lr": args.head_lr}], weight_decay=1e-2
)
scheduler = torch.optim.lr_scheduler.PolynomialLR(
    optimizer, total_iters=args.epochs * len(sampler), power=0.9
)


def train(epoch: int) -> float:
    """Train for one epoch, in which every photo is the anchor of one group."""
    model.train()
    sampler.set_epoch(epoch)
    total = 0.0
    for batch in loader:
        images, y = batch["image"].to(device), batch["tags"].to(device)
        with autocast():
            out = model(images, group=batch["group"].to(device))
        loss = classification_loss(out.logits, y, out.backbone_logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item()
    return total / len(sampler)


@torch.inference_mode()
def infer() -> list[torch.Tensor]:
    """Return the attention maps [k, h, w] of each photo's k tagged classes."""
    model.eval()
    model.backbone.set_output_stride(8)  # the same weights, finer maps
    # Every photo passes the backbone once; its features then take part in all its groups. They are
    # held in memory, 1 MiB a photo for VGG-16 at 256 pixels; pgnn_geo.labels.attention_maps keeps
    # them in a file, and adds scales, mirroring and propagation.
    whole = Subset(voc(transform=SquareTransform(args.size)), range(len(tags)))
    features = []
    for batch in DataLoader(whole, batch_size=8, num_workers=args.workers):
        with autocast():
            features.append(model.backbone(batch["image"].to(device)).half().cpu())
    bank = torch.cat(features)

    partners, size = (args.partners, args.group_size) if args.layers else (1, 1)
    groups = partner_groups(tags, None, partners, size, seed=args.seed)  # anchors first
    maps = []
    for indices, classes in zip(
        groups.indices.split(partners), groups.classes.split(partners), strict=True
    ):
        x = bank[indices.flatten()].to(device).float()
        group = torch.arange(partners, device=device).repeat_interleave(size)
        scores = model.forward_features(x, group=group).scores  # [P * N, K, h, w]
        score = scores[::size, classes[0]].mean(dim=0).relu()
        maps.append((score / score.max().clamp(min=1e-5)).cpu())
    return list(torch.stack(maps).split((tags > 0).sum(dim=1).tolist()))


def measure(maps: list[torch.Tensor]) -> dict[str, float]:
    """Compare the seeds with the true masks; means over the foreground classes."""
    truth = voc(with_masks=True)
    matrix = ConfusionMatrix(num_classes, truth.classes)
    for index, attention in enumerate(maps):
        mask = truth[index]["mask"].as_subclass(torch.Tensor)
        label = seed_labels(
            attention,
            size=tuple(mask.shape),
            classes=tags[index].nonzero()[:, 0] + 1,
            background=args.background,
        )
        matrix.update(label, mask, truth.image_ids[index])
    return matrix.compute().means(background=False)


if __name__ == "__main__":  # loader processes import this file where they cannot fork
    print(f"{photos}, {len(tags)} used, tags from {photos.tag_source}")
    for epoch in range(args.epochs):
        start = time.perf_counter()
        loss = train(epoch)
        print(f"Epoch: {epoch + 1:02d}, Loss: {loss:.4f}, {time.perf_counter() - start:.0f} s")
    scores = measure(infer())
    print(
        f"mIoU: {scores['miou']:.4f}, Precision: {scores['precision']:.4f}, "
        f"Recall: {scores['recall']:.4f}"
    )
