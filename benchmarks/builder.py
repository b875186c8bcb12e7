"""What do patches and their batch cost, beside one copy of the features?

`grid` rows compare with `copy`, the limit; `boxes` rows with `roi_align` alone. The rivals cut
patch by patch and call `Batch.from_data_list`. `checks` is the part of the call that looks at its
arguments. `stitch` goes back, against `interpolate`, box by box.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _common import Report, parser
from _readme import paste
from torch import Tensor
from torch_geometric.data import Batch
from torchvision.ops import roi_align

from pgnn_geo.graph import GroupData, GroupGeometry, PatchGraphBuilder, checks, stitch

GROUP = 3


def patch_loop(features: Tensor, s: int) -> Batch:
    """Cuts patch by patch, one group after the other."""
    _, _, h, w = features.shape
    ph, pw = h // s, w // s
    pieces = []
    for images in features.split(GROUP):
        x, pos, image_batch = [], [], []
        for i, image in enumerate(images):
            for r in range(s):
                for c in range(s):
                    x.append(image[:, r * ph : (r + 1) * ph, c * pw : (c + 1) * pw])
                    pos.append([c * pw, r * ph, (c + 1) * pw, (r + 1) * ph])
                    image_batch.append(i)
        pieces.append(
            GroupData(
                x=torch.stack(x),
                pos=torch.tensor(pos, dtype=torch.float, device=features.device),
                node_class=torch.zeros(len(x), dtype=torch.long, device=features.device),
                image_batch=torch.tensor(image_batch, device=features.device),
                geometry=GroupGeometry(len(images), h, w, s, False),
            )
        )
    return Batch.from_data_list(pieces)


def box_loop(features: Tensor, boxes: list[Tensor], p: int) -> Batch:
    """RoIAlign image by image."""
    h, w = features.shape[2:]
    pieces = []
    for i in range(0, len(features), GROUP):
        mine = boxes[i : i + GROUP]
        x = [roi_align(f.unsqueeze(0), [b], p, aligned=True)
             for f, b in zip(features[i : i + GROUP], mine, strict=True)]  # fmt: skip
        pieces.append(
            GroupData(
                x=torch.cat(x),
                pos=torch.cat(mine),
                node_class=torch.zeros(sum(map(len, mine)), dtype=torch.long),
                image_batch=torch.cat([torch.full((len(b),), j) for j, b in enumerate(mine)]),
                geometry=GroupGeometry(len(mine), h, w, 0, False),
            )
        )
    return Batch.from_data_list(pieces)


def stitch_loop(batch: Batch) -> Tensor:
    """Interpolates box by box; the largest value wins, the background yields."""
    geometry = batch.shared_geometry()
    h, w = geometry.height, geometry.width
    out = []
    for i in range(batch.num_images):
        mine = batch.image_batch == i
        x, pos = batch.x[mine], batch.pos[mine]
        image = x.new_full((x.shape[1], h, w), float("-inf"))
        for node, (x1, y1, x2, y2) in zip(x[:-1], pos[:-1].round().long().tolist(), strict=True):
            size = (max(y2 - y1, 1), max(x2 - x1, 1))
            patch = F.interpolate(node.unsqueeze(0), size, mode="bilinear")[0]
            window = image[:, y1 : y1 + size[0], x1 : x1 + size[1]]
            window.copy_(torch.maximum(window, patch[:, : window.shape[1], : window.shape[2]]))
        background = F.interpolate(x[-1:], (h, w), mode="bilinear")[0]
        out.append(torch.where(image.isinf(), background, image))
    return torch.stack(out)


def check_grid(features: Tensor, s: int) -> None:
    """What a call with a grid checks."""
    checks.features(features, False)
    checks.images(None, GROUP, features)
    checks.node_class(None, features, s)


def check_boxes(features: Tensor, boxes: list[Tensor]) -> None:
    """What a call with boxes checks."""
    checks.features(features, False)
    checks.images(None, GROUP, features)
    checks.boxes(boxes, None, features)


def main() -> None:
    """Runs the cases."""
    args = parser(__doc__).parse_args()
    report = Report("builder", args)
    torch.manual_seed(0)
    groups = {"images_per_group": GROUP}
    for side, grid in [(32, 4)] if args.quick else [(32, 4), (16, 4), (64, 4), (32, 2), (32, 8)]:
        images = 24 if side < 64 else 6
        features = torch.randn(images, 512, side, side, device=args.device)
        builder = PatchGraphBuilder(grid=grid)
        finite = PatchGraphBuilder(grid=grid, check_finite=True)
        batch = builder(features, **groups)
        assert torch.equal(batch.x, patch_loop(features, grid).x)
        rivals: dict[str, Callable[[], Any]] = {
            "copy": features.clone,
            "ours": lambda: builder(features, **groups),  # noqa: B023 (run before it changes)
            "ours, edges": lambda: builder(features, **groups, edges=True),  # noqa: B023
            "ours, check_finite": lambda: finite(features, **groups),  # noqa: B023
            "checks": lambda: check_grid(features, grid),  # noqa: B023
            "patch loop": lambda: patch_loop(features, grid),  # noqa: B023
            "stitch": lambda: stitch(batch),  # noqa: B023
        }
        case = {"what": "grid", "patches": f"grid {grid}", "images": images, "side": side}
        ratios = report.run(case, rivals, reference="copy")
        print(
            f"\nours / copy {ratios['ours']:.2f} (at most 2), "
            f"checks / ours {ratios['checks'] / ratios['ours']:.4f} (at most 0.02)\n"
        )

    features = torch.randn(24, 512, 32, 32, device=args.device)
    corner = torch.rand(24, 8, 2, device=args.device) * 20
    extent = 1 + torch.rand(24, 8, 2, device=args.device) * 11
    boxes = list(torch.cat([corner, corner + extent], dim=2))
    plain = PatchGraphBuilder(box_size=7)
    background = PatchGraphBuilder(box_size=7, background=True)
    batch = background(features, **groups, boxes=boxes)
    ratios = report.run(
        {"what": "boxes", "patches": "8 boxes of 7", "images": 24, "side": 32},
        {
            "roi_align": lambda: roi_align(features, boxes, 7, aligned=True),
            "ours": lambda: plain(features, **groups, boxes=boxes),
            "ours, background": lambda: background(features, **groups, boxes=boxes),
            "checks": lambda: check_boxes(features, boxes),
            "box loop": lambda: box_loop(features, boxes, 7),
            "stitch, max": lambda: stitch(batch),
            "stitch, mean": lambda: stitch(batch, "mean"),
            "stitch, loop": lambda: stitch_loop(batch),
        },
        reference="roi_align",
    )
    print(
        f"\nours / roi_align {ratios['ours']:.2f}, "
        f"checks / ours {ratios['checks'] / ratios['ours']:.4f} (at most 0.02)"
    )
    report.write(x="side", where={"patches": "grid 4"})
    if args.readme:
        paste(report)


if __name__ == "__main__":
    main()
