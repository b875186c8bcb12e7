"""What every segmentation network of stage 2 can do, whatever it is built from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.nn.photo_views import PhotoNetwork


class SegmentationNetwork(PhotoNetwork):
    r"""A segmentation network that can be trained, saved and exported.

    The base of :class:`~pgnn_geo.nn.DeepLabV2` and :class:`~pgnn_geo.nn.TorchvisionSegmentation`. A
    subclass has a :attr:`config` from which :meth:`from_config` builds it again, and two parts,
    :attr:`backbone` and :attr:`head`, which may learn at different rates.

    Shapes:
        - **input:** images :math:`(B, 3, H, W)`, RGB in :math:`[0, 1]`
        - **output:** logits :math:`(B, K+1, h, w)`, the first the background's
    """

    backbone: nn.Module
    head: nn.Module

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network of a :attr:`config`; pretrained weights are left to a state dict."""
        raise NotImplementedError

    @property
    def saved_config(self) -> dict[str, Any]:
        """The :attr:`config` that builds the network as it is now."""
        return self.config

    def freeze(self, stages: int | None) -> None:
        """Stop gradients in the first stages of the backbone.

        Args:
            stages (int, optional): Their number; :obj:`None` for all of them.

        Raises:
            InputError: If the backbone has no such stages.
        """
        if stages != 0:
            raise InputError(
                f"freeze_stages={stages}: {type(self).__name__} is trained as a whole; want 0"
            )

    @contextmanager
    def at_output_stride(self, output_stride: int | None) -> Iterator[None]:
        """Set the stride of the logits for the time of a :obj:`with` block.

        Args:
            output_stride (int, optional): The stride; :obj:`None` changes nothing.

        Raises:
            InputError: If the network has no such stride.
        """
        if output_stride is not None:
            raise InputError(
                f"train_stride={output_stride}: the stride of {type(self).__name__} is fixed; "
                "want null"
            )
        yield

    @torch.no_grad()
    def predict(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Label probabilities :math:`(B, K+1, H, W)`; call :meth:`eval` first.

        Args:
            images (Tensor): Photographs.
            size (sequence of int, optional): Height and width of the result, by default those of
                the images. (default: :obj:`None`)
        """
        return upsample_logits(self(images), size or images.shape[-2:]).softmax(dim=1)

    def parameter_groups(self, lr: float, head_factor: float = 10.0) -> list[dict[str, Any]]:
        """Trainable parameters for an optimizer, the head's with a larger rate.

        Args:
            lr (float): Rate of the backbone.
            head_factor (float): Multiple of it for the head. (default: :obj:`10.0`)
        """
        rates = {"backbone": lr, "head": lr * head_factor}
        groups: list[dict[str, Any]] = []
        for name, rate in rates.items():
            part = self.get_submodule(name)
            weights = [weight for weight in part.parameters() if weight.requires_grad]
            if weights:
                groups.append({"name": name, "params": weights, "lr": rate})
        return groups


def upsample_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resize logits :math:`(B, L, h, w)` bilinearly to :obj:`size`, in float32 or better."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float))
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
