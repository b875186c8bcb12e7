r"""Backbone trunks: images in, one feature map at a chosen output stride out."""

from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet101_Weights, VGG16_Weights, WeightsEnum
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import make_layers

from pgnn_geo.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    r"""A classification trunk made dense: :obj:`[B, 3, H, W]` to :obj:`[B, C, H / s, W / s]`.

    The network is a list of *stages*; each stage that would take the stride beyond
    :obj:`output_stride` keeps its resolution and the layers after it are dilated instead (the
    *à trous* trick of `"DeepLab" <https://arxiv.org/abs/1412.7062>`_), so the weights fit every
    stride and :meth:`set_output_stride` may change it at any time: train at 16, label at 8.

    Args:
        stages (nn.ModuleList): The stages, in order.
        out_channels (int): :math:`C`.
        mean, std (tuple): Per-channel mean and standard deviation for images in :math:`[0, 1]`.
        scale (float): Constant by which the output is multiplied, so that features of photos have
            a root mean square near 1 whatever the range the weights were trained for.
            (default: :obj:`1.0`)

    Shapes:
        - **input:** images :math:`(B, 3, H, W)`, RGB in :math:`[0, 1]`
        - **output:** features :math:`(B, C, \lceil H/s \rceil, \lceil W/s \rceil)`
    """

    mean: Tensor
    std: Tensor
    scale: Tensor

    def __init__(
        self,
        stages: nn.ModuleList,
        out_channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = 1.0,
    ):
        super().__init__()
        self.stages = stages
        self.out_channels = out_channels
        self.frozen_stages = 0
        self.frozen_norm = False
        self.output_stride = 0
        # Part of the state: weights mean nothing without the input that they were trained for.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map of a batch of images in :math:`[0, 1]`."""
        return self.trunk(self.stem(images))

    def stem(self, images: Tensor) -> Tensor:
        """Run the normalisation and the frozen stages: what never changes in training."""
        x = (images - self.mean) / self.std
        for stage in self.stages[: self.frozen_stages]:
            x = stage(x)
        return x

    def trunk(self, x: Tensor) -> Tensor:
        """Run the trained stages on the output of :meth:`stem`."""
        for stage in self.stages[self.frozen_stages :]:
            x = stage(x)
        return self._finish(x) * self.scale

    def levels(self, x: Tensor) -> list[Tensor]:
        """Run :meth:`trunk` and return the outputs of the last two stages, of one size.

        The last stage tells what a thing is, the one before more of what it looks like. They are
        not scaled: :meth:`trunk` is the last times :attr:`scale`. Where all stages are frozen,
        there is but the last.

        Args:
            x (torch.Tensor): Output of :meth:`stem`.
        """
        levels = [x]
        for stage in self.stages[self.frozen_stages :]:
            levels = [levels[-1], stage(levels[-1])]
        levels[-1] = self._finish(levels[-1])
        height, width = levels[-1].shape[-2:]
        return [F.adaptive_avg_pool2d(level, (height, width)) for level in levels]

    def last_two(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the last two stages for images in :math:`[0, 1]`.

        Each is at its own stride and not scaled; which stages are frozen makes no difference.
        """
        x = (images - self.mean) / self.std
        levels: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            levels = [*levels[-1:], x]
        return [levels[0], self._finish(levels[1])]

    def _finish(self, x: Tensor) -> Tensor:
        """Do what follows the last stage."""
        return x

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.mean.device

    def set_output_stride(self, output_stride: int) -> "Backbone":
        """Set strides and dilations, in place.

        Args:
            output_stride (int): 8, 16 or 32, as far as the backbone has stages for it.

        Raises:
            InputError: If it is another number.
        """
        choices = [stride for stride in (8, 16, 32) if stride <= self.largest_stride]
        if output_stride not in choices:
            raise InputError(f"'output_stride' must be one of {choices}, got {output_stride!r}.")
        self._set_output_stride(output_stride)
        self.output_stride = output_stride
        return self

    @property
    def largest_stride(self) -> int:
        """The stride when nothing is dilated."""
        return 2 ** len(self.stages)

    def _set_output_stride(self, output_stride: int) -> None:
        raise NotImplementedError

    def freeze(self, stages: int) -> "Backbone":
        """Stop gradients in the first :obj:`stages` stages (0 to :obj:`len(self.stages)`)."""
        if not 0 <= stages <= len(self.stages):
            raise InputError(
                f"'freeze_stages' of this backbone must lie in 0..{len(self.stages)}, got {stages}."
            )
        for i, stage in enumerate(self.stages):
            stage.requires_grad_(i >= stages)
        if self.frozen_norm:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.frozen_stages = stages
        return self.train(self.training)

    def freeze_norms(self) -> "Backbone":
        """Keep the batch norms, statistics and weights, as those of pretrained weights are kept.

        Batches are small, and what they are trained on is not what the statistics are of.
        """
        self.frozen_norm = True
        return self.freeze(self.frozen_stages)

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> "Backbone":
        """Set the training mode; frozen stages and pretrained batch norms keep their statistics."""
        super().train(mode)
        for stage in self.stages[: self.frozen_stages]:
            stage.eval()
        if self.frozen_norm:
            for norm in self._norms():
                norm.eval()
        return self


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


class ResNetBackbone(Backbone):
    """A ResNet up to layer4: its stem and four residual stages.

    Args:
        resnet (torchvision.models.ResNet): A network of bottleneck blocks.
        **kwargs: See :class:`Backbone`.
    """

    def __init__(self, resnet: torchvision.models.ResNet, **kwargs: Any):
        stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        stages = nn.ModuleList([stem, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        super().__init__(stages, out_channels=resnet.fc.in_features, **kwargs)

    def _set_output_stride(self, output_stride: int) -> None:
        stride, dilation = 4, 1  # after the stem
        for stage, stage_stride in zip(list(self.stages)[1:], (1, 2, 2, 2), strict=True):
            first_dilation = dilation
            if stage_stride > 1 and stride >= output_stride:
                dilation, stage_stride = dilation * stage_stride, 1
            stride *= stage_stride
            for i, block in enumerate(stage.children()):
                d = first_dilation if i == 0 else dilation  # as torchvision's own dilation
                assert isinstance(block, Bottleneck)
                block.conv2.dilation = block.conv2.padding = (d, d)
                block.conv2.stride = (stage_stride, stage_stride) if i == 0 else (1, 1)
                if i == 0 and isinstance(block.downsample, nn.Sequential):
                    shortcut = block.downsample[0]
                    assert isinstance(shortcut, nn.Conv2d)
                    shortcut.stride = (stage_stride, stage_stride)


class PackagedWeights(Enum):
    """Weights that come with this package, for the tiny backbone.

    They know drawn textures and nothing else; ``benchmarks/pretrain_textures.py`` makes them.
    """

    TEXTURES = "vgg_tiny_textures.pt"

    def get_state_dict(self) -> dict[str, Tensor]:
        """Return the weights of the stages, in float32."""
        path = Path(__file__).with_name("weights") / self.value
        state = torch.load(path, weights_only=True)
        return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


#: Weights by name: torchvision's or this package's.
Weights: TypeAlias = WeightsEnum | PackagedWeights

#: The weights that ``weights="DEFAULT"`` stands for. VGG-16: the Caffe weights that the
#: segmentation literature fine-tunes (only the ``features`` are used, and only they are stored).
DEFAULT_WEIGHTS: dict[str, Weights] = {
    "vgg16": VGG16_Weights.IMAGENET1K_FEATURES,
    "resnet101": ResNet101_Weights.DEFAULT,
    "vgg_tiny": PackagedWeights.TEXTURES,
}
#: Features of photographs are brought to a root mean square near 1; the Caffe weights take
#: 0..255 pixel values and answer with several hundred.
FEATURE_SCALES: dict[Weights, float] = {VGG16_Weights.IMAGENET1K_FEATURES: 1 / 20}

#: A narrow VGG with batch norm that learns from scratch in a minute on a CPU: for the embedded
#: data set and for tests.
TINY_LAYERS: list[int | str] = [16, "M", 32, "M", 64, 64, "M", 128, 128, "M"]

BackboneName = Literal["vgg16", "resnet101", "vgg_tiny"]


def resolve_weights(name: str, weights: str | None) -> Weights | None:
    """Return the weights that :obj:`weights` names.

    Args:
        name (str): :obj:`"vgg16"`, :obj:`"resnet101"` or :obj:`"vgg_tiny"`.
        weights (str, optional): :obj:`"DEFAULT"` (see :obj:`DEFAULT_WEIGHTS`), a name of
            torchvision's own weights enumeration such as :obj:`"IMAGENET1K_V1"`, for
            :obj:`"vgg_tiny"` :obj:`"TEXTURES"` (see :class:`PackagedWeights`), or :obj:`None` for
            random initialisation.

    Raises:
        InputError: If the backbone or the weights are unknown.
    """
    if name not in get_args(BackboneName):
        raise InputError(f"'backbone' must be one of {get_args(BackboneName)}, got {name!r}.")
    if weights is None:
        return None
    if weights == "DEFAULT":
        return DEFAULT_WEIGHTS[name]
    choices: Any = PackagedWeights
    if name != "vgg_tiny":
        choices = torchvision.models.get_model_weights(name)
    if weights not in choices.__members__:
        raise InputError(
            f"'weights' for {name} must be 'DEFAULT', None or one of "
            f"{sorted(choices.__members__)}, got {weights!r}."
        )
    found: Weights = choices[weights]
    return found


def build_backbone(
    name: BackboneName = "vgg16",
    weights: str | None = "DEFAULT",
    output_stride: int = 16,
    freeze_stages: int = 0,
) -> Backbone:
    """Build a trunk whose weights come from torchvision or, for the tiny one, from this package.

    Args:
        name (str): :obj:`"vgg16"` (512 channels), :obj:`"resnet101"` (2048) or :obj:`"vgg_tiny"`
            (128). (default: :obj:`"vgg16"`)
        weights (str, optional): See :func:`resolve_weights`. (default: :obj:`"DEFAULT"`)
        output_stride (int): 8, 16 or 32 (not 32 for :obj:`"vgg_tiny"`). (default: :obj:`16`)
        freeze_stages (int): Number of leading stages that are not trained. (default: :obj:`0`)

    Raises:
        InputError: If an argument is unknown, or the weights are neither cached nor downloadable.
    """
    entry = resolve_weights(name, weights)
    preset = entry.transforms() if isinstance(entry, WeightsEnum) else None
    kwargs = {
        "mean": tuple(preset.mean) if preset else IMAGENET_MEAN,
        "std": tuple(preset.std) if preset else IMAGENET_STD,
        "scale": FEATURE_SCALES.get(entry, 1.0) if entry is not None else 1.0,
    }
    state = None if entry is None else load_weights(entry)
    backbone: Backbone
    if name == "vgg_tiny":
        layers = make_layers(TINY_LAYERS, batch_norm=True)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        backbone = VGGBackbone(layers, **kwargs)
        if state is not None:
            backbone.stages.load_state_dict(state)
    elif name == "vgg16":
        features = torchvision.models.vgg16(init_weights=state is None).features
        if state is not None:  # the classifier is not used; some weight files do not even hold it
            prefix = "features."
            features.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
        backbone = VGGBackbone(features, **kwargs)
    else:
        resnet = torchvision.models.resnet101()
        if state is not None:
            resnet.load_state_dict(state)
        backbone = ResNetBackbone(resnet, **kwargs)
    backbone.set_output_stride(output_stride).freeze(freeze_stages)
    return backbone if state is None else backbone.freeze_norms()


def load_weights(entry: Weights) -> dict[str, Tensor]:
    """Return a state dict: of torchvision weights from ``TORCH_HOME`` or the network.

    Raises:
        InputError: If the file is not in the cache and cannot be downloaded, or is damaged.
    """
    if isinstance(entry, PackagedWeights):
        return entry.get_state_dict()
    try:
        return dict(entry.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a bad hash a RuntimeError
        filename = entry.url.rsplit("/", 1)[-1]
        raise InputError(
            f"Pretrained weights {entry} could not be loaded ({error}). Put the file {filename!r} "
            f"into {torch.hub.get_dir()}/checkpoints (TORCH_HOME chooses the folder), connect "
            "to the network, or pass weights=None to start from random weights."
        ) from error
