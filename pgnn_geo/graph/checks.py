"""Checks of what callers hand to the graph builder: one message that names the argument."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from pgnn_geo.errors import InputError


def describe(value: Any) -> str:
    """Type, shape and device of a tensor, or the value itself."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    return repr(value)


def is_channels_last(x: Tensor) -> bool:
    """Whether the tensor lies channels last in memory, and not also channels first."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def features(value: Tensor, check_finite: bool) -> None:
    """Feature maps [B, C, h, w] with at least one position."""
    maps = isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()
    if not maps or value.numel() == 0:
        raise InputError(
            f"`features`: expected a floating-point, non-empty [B, C, h, w], got {describe(value)}"
        )
    # One pass without a copy: the extremes of anything with NaN are NaN.
    if check_finite and not torch.stack(value.detach().aminmax()).isfinite().all():
        b, c, y, x = (~value.isfinite()).nonzero()[0].tolist()
        raise InputError(
            f"`features`: expected finite values, got {value[b, c, y, x].item()} in image {b}, "
            f"channel {c}, row {y}, column {x}"
        )


def images(group: Tensor | None, images_per_group: int | None, features: Tensor) -> list[int]:
    """Number of images of each group."""
    b = features.size(0)  # not `len`, which would fix the size of a compiled graph
    if group is not None and images_per_group is not None:
        raise InputError("expected one of `group` and `images_per_group`, got both")
    if images_per_group is not None:
        n = images_per_group
        if not isinstance(n, int) or n < 1 or b % n:
            raise InputError(f"`images_per_group`: expected a divisor of the {b} images, got {n!r}")
        return [n] * (b // n)
    if group is None:
        return [b]
    if not isinstance(group, Tensor) or group.shape != (b,) or group.dtype != torch.long:
        raise InputError(
            f"`group`: expected the group of each image, int64 [{b}], got {describe(group)}; "
            "for groups of equal size, give `images_per_group`"
        )
    ids = group.tolist()
    if ids != sorted(ids):
        raise InputError(
            f"`group`: expected sorted ids, got {ids}; reorder the images with "
            "`group.argsort(stable=True)`"
        )
    return list(Counter(ids).values())


def absent(because: str, **arguments: Any) -> None:
    """Arguments that have no meaning for this kind of patches."""
    for name, value in arguments.items():
        if value is not None:
            raise InputError(f"`{name}`: expected None because {because}, got a value")


def node_class(value: Tensor | None, features: Tensor, s: int) -> Tensor:
    """Classes of the grid cells -> [B, S * S]."""
    b, device = features.size(0), features.device
    if value is None:
        return torch.zeros(b, s * s, dtype=torch.long, device=device)
    if not isinstance(value, Tensor) or tuple(value.shape) not in ((b * s * s,), (b, s, s)):
        raise InputError(
            f"`node_class`: expected int64 [{b * s * s}] or [{b}, {s}, {s}], got {describe(value)}"
        )
    return _classes("node_class", value, device).reshape(b, s * s)


def boxes(
    value: Sequence[Tensor] | None, box_class: Sequence[Tensor] | None, features: Tensor
) -> tuple[Tensor, Tensor, list[int]]:
    """Boxes [K, 4] as float32, their classes [K], and their number in each image."""
    b, _, h, w = features.shape
    counts = _lengths("boxes", value, b, (4,))
    box = torch.cat([*value]) if any(counts) else features.new_zeros(0, 4)  # type: ignore[misc]
    if box.device != features.device:
        raise InputError(
            f"`boxes`: expected them on {features.device} like the features, got {box.device}"
        )
    box = box.detach().float()
    # In a compiled graph nothing may depend on values. Comparisons with NaN are false.
    if not is_compiling():
        low, high = box[:, :2], box[:, 2:]
        bad = ~((low >= 0) & (low < high) & (high <= low.new_tensor([w, h]))).all(1)
        if bad.any():
            k = int(bad.nonzero()[0])
            i = bisect_right([*accumulate(counts)], k)
            raise InputError(
                f"`boxes[{i}][{k - sum(counts[:i])}]`: expected 0 <= x1 < x2 <= {w} and "
                f"0 <= y1 < y2 <= {h} as (x1, y1, x2, y2), got {box[k].tolist()}"
            )
    none = torch.zeros(len(box), dtype=torch.long, device=box.device)
    if box_class is None:
        return box, none, counts
    classes = _lengths("box_class", box_class, b, ())
    for i, (got, wanted) in enumerate(zip(classes, counts, strict=True)):
        if got != wanted:
            raise InputError(
                f"`box_class`: expected {wanted} classes for the boxes of image {i}, got {got}"
            )
    if len(box) == 0:
        return box, none, counts
    # `torch.tensor([])`, the usual way to say none, is no tensor of integers.
    label = torch.cat([entry for entry in box_class if len(entry)])
    return box, _classes("box_class", label, box.device), counts


def _lengths(name: str, value: Sequence[Tensor] | None, b: int, rest: tuple[int, ...]) -> list[int]:
    shape = "".join(f", {n}" for n in rest)
    wanted = f"a list of {b} tensors [k{shape}], one per image"
    if not isinstance(value, (list, tuple)) or len(value) != b:
        got = f"{len(value)} entries" if isinstance(value, (list, tuple)) else describe(value)
        raise InputError(f"`{name}`: expected {wanted}, got {got}")
    for i, entry in enumerate(value):
        if not isinstance(entry, Tensor) or entry.dim() == 0 or entry.shape[1:] != rest:
            raise InputError(f"`{name}[{i}]`: expected a tensor [k{shape}], got {describe(entry)}")
    if len({entry.device for entry in value}) > 1:
        devices = sorted({str(entry.device) for entry in value})
        raise InputError(f"`{name}`: expected one device, got {', '.join(devices)}")
    return [len(entry) for entry in value]


def _classes(name: str, value: Tensor, device: torch.device) -> Tensor:
    if value.device != device:
        raise InputError(f"`{name}`: expected it on {device} like the features, got {value.device}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise InputError(f"`{name}`: expected integers, got {describe(value)}")
    if device.type == "cpu" and not is_compiling() and value.min() < 0:
        raise InputError(
            f"`{name}`: expected 0 for background or a class from 1, got {int(value.min())}"
        )
    return value.long()
