"""What does the graph add to a training step?

One step (forward, loss, backward, AdamW) of P-GNN beside one of its CAM baseline: the same VGG-16
trunk, the same 12 images of 256 x 256 in four groups, the same loss. Random weights: they do not
change the cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _common import Report, parser

from pgnn_geo import PGNN
from pgnn_geo.losses import classification_loss

GROUPS, SIZE, CLASSES = 4, 3, 20


def training_step(model: PGNN, images: torch.Tensor, tags: torch.Tensor) -> Callable[[], Any]:
    """A closure that does one step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    group = torch.arange(GROUPS).repeat_interleave(SIZE)

    def step() -> None:
        output = model(images, group=group)
        loss = classification_loss(output.logits, tags, output.backbone_logits)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Runs the cases."""
    options = parser(__doc__)
    options.set_defaults(seconds=30.0)
    args = options.parse_args()
    report = Report("step", args)
    torch.manual_seed(0)
    images = torch.rand(GROUPS * SIZE, 3, 256, 256, device=args.device)
    tags = (torch.rand(GROUPS * SIZE, CLASSES, device=args.device) > 0.9).float()
    cases = [(16, 4)] if args.quick else [(16, 4), (8, 4), (16, 0)]
    for stride, frozen in cases:
        rivals = {
            name: training_step(
                PGNN(
                    num_classes=CLASSES,
                    layers=layers,
                    weights=None,
                    output_stride=stride,
                    freeze_stages=frozen,
                ).to(args.device),
                images,
                tags,
            )
            for name, layers in (("CAM", 0), ("P-GNN", 1), ("P-GNN, 2 layers", 2))
        }
        ratios = report.run({"output stride": stride, "frozen stages": frozen}, rivals, "CAM")
        print(f"\nP-GNN / CAM {ratios['P-GNN']:.3f} (at most 1.15)\n")
    report.write()


if __name__ == "__main__":
    main()
