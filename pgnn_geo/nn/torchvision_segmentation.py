r"""Torchvision's segmentation models as networks of stage 2, light ones among them."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from pgnn_geo.errors import InputError
from pgnn_geo.nn.backbones.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PretrainedWeights,
    file_weights,
    is_file,
    load_trunk,
    torchvision_weights,
)
from pgnn_geo.nn.segmentation_network import SegmentationNetwork

#: Names of the models, such as ``"lraspp_mobilenet_v3_large"`` and ``"deeplabv3_resnet50"``.
TORCHVISION_SEGMENTATION: tuple[str, ...] = tuple(
    torchvision.models.list_models(module=torchvision.models.segmentation)
)


class TorchvisionSegmentation(SegmentationNetwork):
    r"""A `segmentation model of torchvision
    <https://docs.pytorch.org/vision/stable/models.html#semantic-segmentation>`_.

    Its backbone may have weights pretrained on ImageNet. Those that torchvision has for the whole
    model are not offered: they were trained on pixel masks, of VOC's classes among others. Batch
    norms are trained along, as torchvision trains them.

    Args:
        architecture (str): One of :data:`TORCHVISION_SEGMENTATION`.
            (default: :obj:`"lraspp_mobilenet_v3_large"`)
        num_classes (int): Foreground classes :math:`K`. (default: :obj:`20`)
        weights (str, optional): Of the backbone: :obj:`"DEFAULT"` for those that torchvision trains
            this model from, their name, the path of a file, or :obj:`None` for random ones.
            (default: :obj:`"DEFAULT"`)

    Shapes:
        - **input:** images :math:`(B, 3, H, W)`, RGB in :math:`[0, 1]`
        - **output:** logits :math:`(B, K+1, h, w)` at the stride of the head: 8, or 16 for
          :obj:`"deeplabv3_mobilenet_v3_large"`

    Raises:
        InputError: If the model or the weights are unknown, cannot be had or do not fit.
    """

    def __init__(
        self,
        architecture: str = "lraspp_mobilenet_v3_large",
        num_classes: int = 20,
        weights: str | None = "DEFAULT",
    ) -> None:
        super().__init__()
        chosen = torchvision_backbone_weights(architecture, weights)
        self.config = {
            "architecture": architecture,
            "num_classes": num_classes,
            "weights": weights,
        }
        self.num_classes = num_classes
        model = torchvision.models.get_model(
            architecture, weights=None, weights_backbone=None, num_classes=num_classes + 1
        )
        self.backbone, self.head = model.backbone, model.classifier
        self.several_maps = "lraspp" in architecture  # of which the head takes two
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if chosen is None else (chosen.mean, chosen.std)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        if chosen is not None:
            # The files are of the whole classifier, whose maps lie under "features" in MobileNet.
            state = {k.removeprefix("features."): v for k, v in chosen.load().items()}
            try:
                load_trunk(self.backbone, state)
            except InputError as error:
                raise InputError(f"{architecture}, weights {weights}: {error}") from error

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TorchvisionSegmentation":
        """Build the network of a :attr:`config`; pretrained weights are left to a state dict."""
        model = cls(**{**config, "weights": None})
        model.config = dict(config)
        return model

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.mean.device

    def forward(self, images: Tensor) -> Tensor:
        """Return logits at the stride of the head; torchvision would bring them to full size."""
        maps = self.backbone((images - self.mean) / self.std)
        logits: Tensor = self.head(maps if self.several_maps else maps["out"])
        return logits


class TorchvisionSource(NamedTuple):
    """Where the weights of a :class:`TorchvisionSegmentation` come from, before it is trained."""

    name: str  #: its architecture
    weights: str | None

    def pretrained(self) -> PretrainedWeights | None:
        """See :func:`torchvision_backbone_weights`."""
        return torchvision_backbone_weights(self.name, self.weights)


def torchvision_backbone_weights(
    architecture: str, weights: str | None
) -> PretrainedWeights | None:
    """Return what is known of a backbone's weights; nothing is loaded.

    Args:
        architecture, weights: As of :class:`TorchvisionSegmentation`.

    Raises:
        InputError: If there is no such model, or it has no such weights.
    """
    if architecture not in TORCHVISION_SEGMENTATION:
        raise InputError(
            f"'architecture' must be deeplab_v2 or one of {', '.join(TORCHVISION_SEGMENTATION)}, "
            f"got {architecture!r}."
        )
    if weights is None:
        return None
    builder: Any = torchvision.models.get_model_builder(architecture)
    default: WeightsEnum = inspect.signature(builder).parameters["weights_backbone"].default
    choices: Any = type(default)
    usual = torchvision_weights(default)
    if is_file(weights):
        return file_weights(weights, usual, tuple(choices))
    if weights != "DEFAULT" and weights not in choices.__members__:
        raise InputError(
            f"'weights' for {architecture} must be 'DEFAULT', None, a file's path or one of "
            f"{sorted(choices.__members__)}, got {weights!r}."
        )
    return usual if weights == "DEFAULT" else torchvision_weights(choices[weights])
