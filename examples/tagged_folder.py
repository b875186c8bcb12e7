"""Masks for your own photos: a folder of photos and a CSV of tags in, palette PNGs out.

    python examples/tagged_folder.py --root photos --csv photos/labels.csv --out runs/photos

The CSV has the columns image,labels; several labels are separated by spaces.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import seed_everything

from pgnn_geo.datasets import TaggedFolder
from pgnn_geo.io.checkpoint import save_attention_model
from pgnn_geo.io.files import write_json
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import save_mask
from pgnn_geo.labels import MapConfig, attention_maps, seed_labels
from pgnn_geo.nn import PGNN
from pgnn_geo.training.attention import AttentionTrainingConfig, train_attention
from pgnn_geo.viz import overlay, overlay_sheet


def main() -> None:
    """Train, infer attention maps, write label images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with JPEG or PNG photos")
    parser.add_argument("--csv", required=True, help="file with the columns image,labels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="side of the photos in pixels")
    parser.add_argument("--backbone", default="vgg16", choices=["vgg16", "resnet101", "vgg_tiny"])
    parser.add_argument("--weights", default="DEFAULT", help="'none' for random weights")
    parser.add_argument("--freeze-stages", type=int, default=4)
    parser.add_argument("--background", type=float, default=0.6, help="background score")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    weights = None if args.weights == "none" else args.weights

    dataset = TaggedFolder(args.root, args.csv)
    dataset.validate()  # everything wrong with the photos and tags at once
    print(f"{dataset}: {', '.join(dataset.classes)}")

    seed_everything(args.seed, verbose=False)
    model = PGNN(
        args.backbone, len(dataset.classes), weights=weights, freeze_stages=args.freeze_stages
    )
    config = AttentionTrainingConfig(epochs=args.epochs, size=args.size, seed=args.seed)
    train_attention(model, dataset, args.out, config)
    ledger = SupervisionLedger(tags=args.csv, weights=weights and f"{args.backbone} {weights}")
    save_attention_model(args.out / "model", model, dataset.classes, ledger)

    maps = attention_maps(model, dataset, MapConfig(size=args.size), args.out / "stems")
    rows = []
    for index, attention in enumerate(maps):
        item = dataset[index]
        height, width = item["size"].tolist()
        labels = item["tags"].nonzero()[:, 0] + 1
        mask = seed_labels(attention, (height, width), labels, background=args.background)
        save_mask(args.out / "labels" / f"{item['image_id']}.png", mask)
        if index < 8:
            photo = item["image"].as_subclass(torch.Tensor)
            rows.append([photo, overlay(photo, mask)])
    write_json(args.out / "labels" / "ledger.json", ledger.to_dict())
    overlay_sheet(args.out / "overlays.png", rows, ("photo", "P-GNN"), dataset.classes)
    print(f"{len(maps)} masks in {args.out / 'labels'}, pictures in {args.out / 'overlays.png'}")


if __name__ == "__main__":
    main()
