"""Checks of what callers hand to the graph builder: one message that names the argument."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
    if (
        not isinstance(value, Tensor)
        or value.dim() != 4
        or not value.is_floating_point()
        or value.numel() == 0
    ):
        raise InputError(
            f"`features`: expected a floating-point, non-empty [B, C, h, w], got {describe(value)}"
        )
    # The sum of finite values may overflow, hence the second look.
    if (
        check_finite
        and not value.detach().sum(dtype=torch.promote_types(value.dtype, torch.float)).isfinite()
        and not value.isfinite().all()
    ):
        b, c, y, x = (~value.isfinite()).nonzero()[0].tolist()
        raise InputError(
            f"`features`: expected finite values, got {value[b, c, y, x].item()} in image {b}, "
            f"channel {c}, row {y}, column {x}"
        )


def images_per_group(group: Tensor | int | None, features: Tensor) -> Tensor:
    """Number of images of each group, on the host."""
    b = len(features)
    if group is None:
        return torch.tensor([b])
    if isinstance(group, int):
        if group < 1 or b % group:
            raise InputError(f"`group`: expected a divisor of the {b} images, got {group}")
        return torch.full((b // group,), group)
    if not isinstance(group, Tensor) or group.shape != (b,) or group.dtype != torch.long:
        raise InputError(f"`group`: expected int64 [{b}], got {describe(group)}")
    if group.device not in (features.device, torch.device("cpu")):
        raise InputError(
            f"`group`: expected it on the CPU or on {features.device} like the features, "
            f"got {group.device}"
        )
    ids, counts = torch.unique_consecutive(group.cpu(), return_counts=True)
    if (ids.diff() < 0).any():
        raise InputError(
            f"`group`: expected sorted ids, got {group.tolist()}; reorder the images with "
            "`group.argsort(stable=True)`"
        )
    return counts


def absent(because: str, **arguments: Any) -> None:
    """Arguments that have no meaning for this kind of patches."""
    for name, value in arguments.items():
        if value is not None:
            raise InputError(f"`{name}`: expected None because {because}, got a value")


def node_class(value: Tensor | None, b: int, s: int, device: torch.device) -> Tensor:
    """Classes of the grid cells -> [B, S * S]."""
    if value is None:
        return torch.zeros(b, s * s, dtype=torch.long, device=device)
    if not isinstance(value, Tensor) or tuple(value.shape) not in ((b * s * s,), (b, s, s)):
        raise InputError(
            f"`node_class`: expected int64 [{b * s * s}] or [{b}, {s}, {s}], got {describe(value)}"
        )
    return _classes("node_class", value, device).reshape(b, s * s)


def boxes(
    value: Sequence[Tensor] | None, box_class: Sequence[Tensor] | None, features: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [K, 4] as float32, their classes [K], and their number per image [B] on the host."""
    b, _, h, w = features.shape
    counts = _lengths("boxes", value, b, (4,))
    box = torch.cat([*value]) if counts.sum() else features.new_zeros(0, 4)  # type: ignore[misc]
    if box.device != features.device:
        raise InputError(
            f"`boxes`: expected them on {features.device} like the features, got {box.device}"
        )
    box = box.detach().float()
    limit = box.new_tensor([w, h])
    inside = (box[:, :2] >= 0) & (box[:, 2:] <= limit)
    # Comparisons with NaN are false, so this one reduction finds every kind of bad box.
    if not (inside & (box[:, 2:] > box[:, :2])).all():
        _refuse_box(box, counts, h, w)
    none = torch.zeros(len(box), dtype=torch.long, device=box.device)
    if box_class is None:
        return box, none, counts
    classes = _lengths("box_class", box_class, b, ())
    if not torch.equal(classes, counts):
        i = int((classes != counts).nonzero()[0])
        raise InputError(
            f"`box_class`: expected {int(counts[i])} classes for the boxes of image {i}, "
            f"got {int(classes[i])}"
        )
    if len(box) == 0:
        return box, none, counts
    # `torch.tensor([])`, the usual way to say none, is no tensor of integers.
    label = torch.cat([entry for entry in box_class if len(entry)])
    return box, _classes("box_class", label, box.device), counts


def _lengths(name: str, value: Sequence[Tensor] | None, b: int, rest: tuple[int, ...]) -> Tensor:
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
    return torch.tensor([len(entry) for entry in value])


def _refuse_box(box: Tensor, counts: Tensor, h: int, w: int) -> None:
    x1, y1, x2, y2 = box.unbind(1)
    outside = (x1 < 0) | (y1 < 0) | (x2 > w) | (y2 > h)
    for bad, problem in (
        (~box.isfinite().all(1), "expected finite numbers"),
        (outside, f"expected it inside the feature map, 0 <= x <= {w} and 0 <= y <= {h}"),
        ((x2 <= x1) | (y2 <= y1), "expected x1 < x2 and y1 < y2"),
    ):
        if bad.any():
            k = int(bad.nonzero()[0])
            image = int(torch.arange(len(counts)).repeat_interleave(counts)[k])
            nth = k - int(counts[:image].sum())
            raise InputError(f"`boxes[{image}][{nth}]`: {problem}, got {box[k].tolist()} (xyxy)")


def _classes(name: str, value: Tensor, device: torch.device) -> Tensor:
    if value.device != device:
        raise InputError(f"`{name}`: expected it on {device} like the features, got {value.device}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise InputError(f"`{name}`: expected integers, got {describe(value)}")
    if device.type == "cpu" and value.min() < 0:
        raise InputError(
            f"`{name}`: expected 0 for background or a class from 1, got {int(value.min())}"
        )
    return value.long()
