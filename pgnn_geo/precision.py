"""Choice of the device and the numeric precision for the machine at hand."""

from typing import Literal

import torch

from pgnn_geo.errors import InputError

TruePrecision = Literal["32-true", "bf16-mixed", "16-mixed"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


def default_device() -> torch.device:
    """Return the GPU if there is one, as Lightning takes it in training, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_devices(devices: int, processes: int = 1) -> None:
    """Check that a training can have so many devices; without a GPU they are processes.

    Args:
        devices (int): Those that it starts itself.
        processes (int): Those that it is started in, of one device each. (default: :obj:`1`)

    Raises:
        InputError: If it cannot.
    """
    if processes > 1 and devices > 1:
        raise InputError(
            f"devices={devices}: each of {processes} processes has one device; leave it at 1"
        )
    there = torch.cuda.device_count()
    if devices < 1 or 0 < there < devices:
        limit = f"1 to {there}, the GPUs of this machine" if there else "1 or more"
        raise InputError(f"devices={devices}: want {limit}")


def has_fast_bfloat16(device: torch.device | None = None) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    On CPUs without AMX or AVX512-bf16 the type is emulated and many times slower than float32.

    Args:
        device (torch.device, optional): The device; :func:`default_device` if not given.
    """
    if (device or default_device()).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(
    precision: Precision = "auto", device: torch.device | None = None
) -> TruePrecision:
    """Return Lightning's name of the precision; :obj:`"auto"` takes bfloat16 where it is fast.

    Args:
        precision (str): :obj:`"auto"` or one of Lightning's names. (default: :obj:`"auto"`)
        device (torch.device, optional): Where it is for; :func:`default_device` if not given.
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if has_fast_bfloat16(device) else "32-true"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context in which a network runs in :obj:`precision` on :obj:`device`."""
    name = resolve_precision(precision, device)
    dtype = torch.float16 if name == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=name != "32-true")
