"""Makes the weights `TEXTURES` of the tiny backbone: it learns to tell drawn textures apart.

A texture is two colours mixed by a random combination of plane waves. Each image is a mosaic of
several, turned, mirrored, scaled and tinted at random, and the network names the texture at every
position, from each of its last two stages. The textures are drawn anew from random numbers: none is
taken from the embedded data set.

    python benchmarks/pretrain_textures.py --out pgnn_geo/nn/weights
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnn_geo.nn.backbones import PackagedWeights, build_backbone


class Textures:
    """A fixed set of textures, and mosaics of them.

    Args:
        count: Textures.
        seed: Which ones.
    """

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.generator = g
        self.count = count
        period = torch.empty(count, 3).uniform_(7, 26, generator=g)
        angle = torch.empty(count, 3).uniform_(0, math.pi, generator=g)
        wave = 2 * math.pi / period
        self.wave = torch.stack([wave * angle.cos(), wave * angle.sin()], dim=-1)  # [N, 3, 2]
        self.warp = torch.empty(count).uniform_(0, 1.5, generator=g)
        self.kind = torch.randint(4, (count,), generator=g)
        self.offset = torch.empty(count).uniform_(-0.7, 0.7, generator=g)
        base = torch.empty(count, 1, 3).uniform_(0.2, 0.8, generator=g)
        self.ink = base + torch.empty(count, 2, 3).uniform_(-0.2, 0.2, generator=g)

    def mosaics(self, batch: int, side: int, cells: int = 6) -> tuple[Tensor, Tensor]:
        """Return images `[B, 3, S, S]` and the texture of each pixel `[B, S, S]`."""
        g = self.generator
        picked = torch.randint(self.count, (batch, cells), generator=g)
        axis = torch.arange(side) + 0.5
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        points = torch.rand(batch, cells, 2, 1, 1, generator=g) * side
        distance = (x - points[:, :, 0]).square() + (y - points[:, :, 1]).square()
        cell = distance.argmin(dim=1)  # [B, S, S]
        turn = torch.rand(batch, cells, 1, 1, generator=g) * 2 * math.pi
        stretch = torch.empty(2, batch, cells, 1, 1).uniform_(0.85, 1.15, generator=g)
        side_of = torch.randint(2, (batch, cells, 1, 1), generator=g) * 2 - 1
        u = (x * turn.cos() + y * turn.sin()) * stretch[0] * side_of
        v = (y * turn.cos() - x * turn.sin()) * stretch[1]
        w = self.wave[picked][..., None, None]  # [B, cells, 3, 2, 1, 1]
        shift = torch.rand(batch, cells, 3, 1, 1, generator=g) * 2 * math.pi
        phase = w[:, :, :, 0] * u[:, :, None] + w[:, :, :, 1] * v[:, :, None] + shift
        first, second, third = phase.unbind(dim=2)
        bent = torch.sin(first + self.warp[picked][..., None, None] * torch.sin(third))
        other = torch.sin(second)
        kinds = torch.stack([bent, bent + other, 1.5 * bent * other, torch.maximum(bent, other)])
        kind = self.kind[picked][None, :, :, None, None].expand(1, *bent.shape)
        value = kinds.gather(0, kind)[0] + self.offset[picked][..., None, None]
        mix = (0.5 + 0.5 * (3 * value).clamp(-1, 1))[..., None]  # [B, cells, S, S, 1]
        ink = self.ink[picked] + 0.03 * torch.randn(batch, cells, 1, 3, generator=g)
        ink = ink * torch.empty(batch, cells, 1, 1).uniform_(0.85, 1.15, generator=g)
        dark, light = ink[:, :, None, None].unbind(dim=-2)
        colours = dark + (light - dark) * mix  # [B, cells, S, S, 3]
        index = cell[:, None, :, :, None].expand(-1, 1, -1, -1, 3)
        images = colours.gather(1, index)[:, 0].permute(0, 3, 1, 2)
        images = images + 0.02 * torch.randn(images.shape, generator=g)
        return images.clamp(0, 1), picked.gather(1, cell.flatten(1)).view(batch, side, side)


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--out", type=Path, required=True, help="folder of the file")
    cli.add_argument("--steps", type=int, default=1000)
    cli.add_argument("--batch", type=int, default=16)
    cli.add_argument("--side", type=int, default=128)
    cli.add_argument("--textures", type=int, default=192)
    cli.add_argument("--lr", type=float, default=3e-3)
    args = cli.parse_args()

    torch.manual_seed(0)
    backbone = build_backbone("vgg_tiny", None, 8).train()
    heads = nn.ModuleList(nn.Conv2d(channels, args.textures, 1) for channels in (64, 128))
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps)
    textures = Textures(args.textures, seed=0)
    start = time.perf_counter()
    for step in range(1, args.steps + 1):
        images, truth = textures.mosaics(args.batch, args.side)
        losses, right = [], 0.0
        for level, head in zip(backbone.last_two(images), heads, strict=True):
            # A position stands for the pixel in its middle.
            stride = args.side // level.size(-1)
            target = truth[:, stride // 2 :: stride, stride // 2 :: stride]
            logits = head(level)
            losses.append(F.cross_entropy(logits, target))
            right = float((logits.argmax(dim=1) == target).float().mean())
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            figures = "  ".join(f"{float(loss):.3f}" for loss in losses)
            print(
                f"step {step}  loss {figures}  right {right:.3f}  "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    backbone.eval()
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in backbone.stages.state_dict().items()
    }
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(state, args.out / PackagedWeights.TEXTURES.value)


if __name__ == "__main__":
    main()
