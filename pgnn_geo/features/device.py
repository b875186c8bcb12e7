"""What goes to a GPU, and stays there: photos, and the features of a data set where they fit."""

import torch
from torch import Tensor

from pgnn_geo.features.bank import FeatureBank


class ResidentFeatures:
    """The features of a bank on a device, in half precision as on disk.

    Args:
        bank (FeatureBank): The bank, which is read once.
        device (torch.device or str): The device.
    """

    def __init__(self, bank: FeatureBank, device: torch.device | str) -> None:
        self.shape = bank.shape
        count, channels, height, width = bank.shape
        # Channels last, as the bank has them.
        self._rows = torch.empty(
            count, height, width, channels, dtype=torch.float16, device=device
        ).permute(0, 3, 1, 2)
        for photos in torch.arange(count).split(64):
            self._rows[photos[0] : photos[-1] + 1] = bank[photos].half().to(device)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return float32 features :obj:`[n, C, h, w]` on the device."""
        return self._rows[indices.to(self._rows.device, non_blocking=True)].float()


def resident(bank: FeatureBank, device: torch.device | str) -> FeatureBank | ResidentFeatures:
    """Return features on a GPU if they take at most half of what is free there.

    Else, and on a CPU, the bank, which is read some photos at a time.

    Args:
        bank (FeatureBank): The bank.
        device (torch.device or str): Where to compute.
    """
    if torch.device(device).type != "cuda":
        return bank
    free, _ = torch.cuda.mem_get_info(device)
    count, channels, height, width = bank.shape
    size = 2 * count * channels * height * width
    return ResidentFeatures(bank, device) if size <= free // 2 else bank


def on_device(photos: Tensor, device: torch.device) -> Tensor:
    """Return photos where a network is, channels last, in which its convolutions are faster.

    Nobody waits for a copy from pinned memory, in which photos are loaded where there is a GPU.
    """
    return photos.to(device, memory_format=torch.channels_last, non_blocking=True)
