"""How much faster are Winograd's convolutions than PyTorch's, in layers and in VGG-16?

    OMP_NUM_THREADS=1 python benchmarks/winograd.py --threads 1 --processor-time

Each layer of VGG-16 that is wide enough, at the sizes of a photo of 256 x 256 (features of a photo
and its mirror image, stride 16) and of 320 x 320 (DeepLab-v2, stride 8); then both networks as a
whole. Random weights and photos: they do not change the cost. `error` is the largest difference
over the standard deviation of the output. With --keep-memory as the command line runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _common import Report, parser
from torch import Tensor, nn

from pgnn_geo.nn import DeepLabV2, build_backbone
from pgnn_geo.nn.winograd import WinogradConv2d

#: Photos, channels in and out, side of the map, dilation.
LAYERS = [
    *((2, 128, 256, 64, 1), (2, 256, 256, 64, 1), (2, 256, 512, 32, 1), (2, 512, 512, 32, 1)),
    *((2, 512, 512, 16, 1), (1, 128, 256, 80, 1), (1, 256, 256, 80, 1), (1, 256, 512, 40, 1)),
    *((1, 512, 512, 40, 1), (1, 512, 512, 40, 2)),
]


def plain(module: nn.Module) -> nn.Module:
    """Put PyTorch's convolutions in the place of Winograd's, in place."""
    for name, child in module.named_children():
        if isinstance(child, WinogradConv2d):
            conv = nn.Conv2d(
                child.in_channels,
                child.out_channels,
                3,
                padding=child.padding,
                dilation=child.dilation,
            )
            conv.weight, conv.bias = child.weight, child.bias
            setattr(module, name, conv)
        else:
            plain(child)
    return module


def rivals(fast: nn.Module, slow: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    """Both networks on the same input."""
    return {"Winograd": lambda: fast(x), "PyTorch": lambda: slow(x)}


def error(fast: nn.Module, slow: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """How far the outputs are apart."""
    wanted = slow(x)
    return {"Winograd": {"error": ((fast(x) - wanted).abs().max() / wanted.std()).item()}}


def main() -> None:
    """Runs all cases."""
    args = parser((__doc__ or "").splitlines()[0]).parse_args()
    report, last = Report("winograd", args), torch.channels_last
    torch.manual_seed(0)
    with torch.no_grad():
        for count, inner, outer, side, dilation in LAYERS[4:5] if args.quick else LAYERS:
            slow = nn.Conv2d(inner, outer, 3, padding=dilation, dilation=dilation)
            slow, fast = slow.to(memory_format=last), WinogradConv2d.of(slow)
            x = torch.randn(count, inner, side, side).to(memory_format=last)
            case = {"what": "layer", "photos": count, "channels": f"{inner} to {outer}"}
            case |= {"side": side, "dilation": dilation}
            report.run(case, rivals(fast, slow, x), "PyTorch", error(fast, slow, x))
        if not args.quick:
            networks: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
                "features": (lambda: build_backbone("vgg16", None, 16), (2, 3, 256, 256)),
                "DeepLab-v2": (
                    lambda: DeepLabV2(num_classes=20, head="largefov", weights=None),
                    (1, 3, 320, 320),
                ),
            }
            for name, (build, shape) in networks.items():
                fast, slow = build().eval(), build().eval()
                slow.load_state_dict(fast.state_dict())
                x = torch.rand(shape).to(memory_format=last)
                both = fast, plain(slow), x
                report.run(
                    {"what": name, "photos": shape[0]}, rivals(*both), "PyTorch", error(*both)
                )
    report.write()


if __name__ == "__main__":
    main()
