"""VGG, and the tiny one of this package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import make_layers

from pgnn_geo.errors import InputError
from pgnn_geo.nn.backbones.base import Backbone
from pgnn_geo.nn.backbones.entries import BACKBONES, BackboneEntry, torchvision_entry
from pgnn_geo.nn.backbones.weights import PretrainedWeights, load_trunk
from pgnn_geo.nn.winograd import with_winograd

#: A narrow VGG with batch norm that learns from scratch in a minute on a CPU: for the embedded
#: data set and for tests.
TINY_LAYERS: list[int | str] = [16, "M", 32, "M", 64, 64, "M", 128, 128, "M"]

_TEXTURES = Path(__file__).parents[1] / "weights" / "vgg_tiny_textures.pt"


class VGGBackbone(Backbone):
    """A VGG up to its last ReLU: stages of convolutions, a pooling layer before each but the first.

    Args:
        features (nn.Sequential): A torchvision VGG's :obj:`features`, ending in a pooling layer.
        **kwargs: See :class:`Backbone`.
    """

    def __init__(self, features: nn.Sequential, **kwargs: Any):
        stages, stage = nn.ModuleList(), nn.Sequential()
        for layer in features:
            if isinstance(layer, nn.MaxPool2d):  # a pool opens the next stage; the last is unused
                stages.append(stage)
                stage = nn.Sequential()
            stage.append(layer)
        widths = [layer.out_channels for layer in features if isinstance(layer, nn.Conv2d)]
        super().__init__(stages, out_channels=widths[-1], **kwargs)
        self.final_pool = nn.MaxPool2d(2, 2, ceil_mode=True)

    def _finish(self, x: Tensor) -> Tensor:
        """Pool, as the network did that this was, if nothing is dilated."""
        return self.final_pool(x) if self.output_stride == self.largest_stride else x

    def _set_output_stride(self, output_stride: int) -> None:
        stride, dilation = 1, 1
        for stage in self.stages:
            for layer in stage.children():
                if isinstance(layer, nn.MaxPool2d):
                    if stride < output_stride:
                        stride *= 2
                        layer.kernel_size, layer.stride, layer.padding = 2, 2, 0
                        layer.ceil_mode = True
                    else:  # keep the resolution; 3 x 3 stays centred where 2 x 2 would shift
                        dilation *= 2
                        layer.kernel_size, layer.stride, layer.padding = 3, 1, 1
                        layer.ceil_mode = False
                elif isinstance(layer, nn.Conv2d):
                    layer.dilation = layer.padding = (dilation, dilation)


def _vgg16(state: Mapping[str, Tensor] | None, **kwargs: Any) -> VGGBackbone:
    features = torchvision.models.vgg16(init_weights=state is None).features
    if state is not None:  # the classifier is not used; some weight files do not even hold it
        prefix = "features."
        load_trunk(
            features, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
    return VGGBackbone(with_winograd(features), **kwargs)


def _vgg_tiny(state: Mapping[str, Tensor] | None, **kwargs: Any) -> VGGBackbone:
    layers = make_layers(TINY_LAYERS, batch_norm=True)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    backbone = VGGBackbone(layers, **kwargs)
    if state is not None:
        load_trunk(backbone.stages, state)
    return backbone


def _packaged(name: str) -> PretrainedWeights:
    """The weights that come with this package; ``benchmarks/pretrain_textures.py`` makes them."""
    if name not in ("DEFAULT", "TEXTURES"):
        raise InputError(f"'weights' for vgg_tiny must be 'DEFAULT' or 'TEXTURES', got {name!r}.")

    def load() -> dict[str, Tensor]:
        state = torch.load(_TEXTURES, weights_only=True)
        return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}

    return PretrainedWeights("PackagedWeights.TEXTURES", load, "labels of drawn textures", "MIT")


# The Caffe weights that the segmentation literature fine-tunes: only the `features` are used, and
# only they are stored. They take 0..255 pixel values and answer with several hundred; features of
# photographs are brought to a root mean square near 1.
BACKBONES.register("vgg16")(
    torchvision_entry(
        "vgg16",
        _vgg16,
        default=VGG16_Weights.IMAGENET1K_FEATURES,
        scales={VGG16_Weights.IMAGENET1K_FEATURES: 1 / 20},
    )
)
BACKBONES.register("vgg_tiny")(BackboneEntry(_vgg_tiny, _packaged))
