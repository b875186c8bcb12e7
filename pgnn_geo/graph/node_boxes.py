"""What patch graphs ask of boxes, wherever those come from."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class NodeBoxes(Protocol):
    """Boxes of every photo of a data set, of which graphs make nodes.

    :class:`~pgnn_geo.boxes.PhotoBoxes` is one.
    """

    @property
    def sizes(self) -> Tensor:
        """Height and width of each photo :math:`(M, 2)`."""
        ...

    @property
    def counts(self) -> Tensor:
        """Number of boxes of each photo :math:`(M)`."""
        ...

    def __len__(self) -> int: ...

    def shown(
        self,
        rows: Tensor,
        size: Sequence[int],
        crop: Tensor | None = None,
        flip: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes in what is shown of some photos, in feature pixels, and their classes.

        Args:
            rows (torch.Tensor): The photos' places in the data set.
            size (sequence of int): Height and width of the feature map.
            crop (torch.Tensor, optional): The part of each photo that is shown, xyxy in its pixels;
                all of it if not given.
            flip (torch.Tensor, optional): Whether each is mirrored; none is if not given.
            device (torch.device or str): Where the result is wanted. (default: :obj:`"cpu"`)

        Shapes:
            - **rows:** :math:`(B)`
            - **crop:** :math:`(B, 4)`
            - **flip:** :math:`(B)`
            - **output:** :math:`B` tensors :math:`(k_i, 4)` and :math:`B` tensors :math:`(k_i)`
        """
        ...
