r"""DeepLab-v2: the segmentation network of stage 2, on the trunks of stage 1."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.nn.backbones import Backbone, BackboneName, VGGBackbone, build_backbone
from pgnn_geo.nn.propagation import propagated_maps
from pgnn_geo.nn.segmentation_network import SegmentationNetwork

HeadName = Literal["aspp", "largefov"]

#: Dilations of the 3 x 3 convolutions that each head sums over.
HEAD_DILATIONS: dict[HeadName, tuple[int, ...]] = {"aspp": (6, 12, 18, 24), "largefov": (12,)}


class DilatedHead(nn.Module):
    r"""Atrous spatial pyramid pooling: the sum of parallel dilated 3 x 3 convolutions.

    One branch is the *LargeFOV* head.

    Args:
        in_channels (int): Channels of the features.
        out_channels (int): Labels.
        dilations (sequence of int): One branch each.
        hidden_channels (int, optional): Width of the two hidden layers of each branch (fc6 and fc7
            of VGG made convolutions, with dropout); without them a branch is one convolution, as
            on ResNet. (default: :obj:`None`)
        normalize (bool): Scale the features at every position to a root mean square of one first.
            Those of a frozen backbone differ tenfold from place to place, and what a place shows is
            in their direction. (default: :obj:`False`)

    Shapes:
        - **input:** features :math:`(B, C, h, w)`
        - **output:** logits :math:`(B, \mathrm{out}, h, w)`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        hidden_channels: int | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.branches = nn.ModuleList()
        for dilation in dilations:
            width = hidden_channels or out_channels
            branch = nn.Sequential(
                nn.Conv2d(in_channels, width, 3, padding=dilation, dilation=dilation)
            )
            if hidden_channels is not None:
                branch.extend([nn.ReLU(inplace=True), nn.Dropout(0.5)])
                branch.extend([nn.Conv2d(width, width, 1), nn.ReLU(inplace=True)])
                branch.extend([nn.Dropout(0.5), nn.Conv2d(width, out_channels, 1)])
            self.branches.append(branch)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw hidden layers by He's rule and classifiers with standard deviation 0.01."""
        for branch in self.branches:
            *hidden, classifier = (weight for weight in branch.parameters() if weight.dim() == 4)
            for weight in hidden:
                nn.init.kaiming_normal_(weight, nonlinearity="relu")
            nn.init.normal_(classifier, std=0.01)
            for bias in (weight for weight in branch.parameters() if weight.dim() == 1):
                nn.init.zeros_(bias)

    def set_dilations(self, dilations: Sequence[int]) -> None:
        """Set the dilation of each branch, in place; its weights fit any."""
        for branch, dilation in zip(self.branches, dilations, strict=True):
            conv = branch.get_submodule("0")
            assert isinstance(conv, nn.Conv2d)
            conv.dilation = conv.padding = (dilation, dilation)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits at the resolution of the features."""
        if self.normalize:
            features = features.size(1) ** 0.5 * F.normalize(features, dim=1)
        logits = self.branches[0](features)
        for branch in self.branches[1:]:
            logits = logits + branch(features)
        return logits


def compared_features(levels: Sequence[Tensor]) -> Tensor:
    """Return what positions are compared by, :math:`(B, C, h, w)`: levels of unit length, joined.

    They are centered on their mean over the photo: of many backbones the features of all positions
    have most in common, and what tells one from the other is the rest.

    Args:
        levels (sequence of torch.Tensor): Outputs :math:`(B, C_l, h_l, w_l)` of stages; each is
            brought to the size of the last.
    """
    height, width = levels[-1].shape[-2:]
    same = [
        level
        if level.shape[-2:] == (height, width)
        else F.adaptive_avg_pool2d(level, (height, width))
        for level in levels
    ]
    joined = torch.cat([F.normalize(level.float(), dim=1) for level in same], dim=1)
    return joined - joined.mean(dim=(2, 3), keepdim=True)


class DeepLabV2(SegmentationNetwork):
    r"""`"DeepLab-v2" <https://arxiv.org/abs/1606.00915>`_ with an ASPP or LargeFOV head.

    Batch norms of a pretrained backbone are frozen, statistics and weights. On a VGG each branch of
    the head has the two hidden layers of the classifier (DeepLab-ASPP-L), on ResNet none.

    With :obj:`propagation` the label probabilities travel along the weighted edges of the photo's
    graph when the network is evaluated, as class evidence does in stage 1:

    .. math::
        \mathbf{z}^{\prime}_{\alpha} = \log \sum_{\beta} E_{\alpha\beta}
        \operatorname{softmax}(\mathbf{z}_{\beta}), \qquad E_{\alpha\beta} \propto
        \mathrm{ReLU}(\cos(\mathbf{f}_{\alpha}, \mathbf{f}_{\beta}))^p

    The nodes are all positions, :math:`\mathbf{f}` the outputs of the last two stages there, each
    of unit length, and centered on the photo's mean. Training sees the head's :math:`\mathbf{z}`.

    Args:
        backbone (str): See :func:`~pgnn_geo.nn.backbones.build_backbone`.
            (default: :obj:`"vgg16"`)
        num_classes (int): Foreground classes :math:`K`. (default: :obj:`20`)
        head (str): :obj:`"aspp"` or :obj:`"largefov"`. (default: :obj:`"aspp"`)
        dilations (sequence of int, optional): Of the head; by default 6, 12, 18, 24 for ASPP and
            12 for LargeFOV, which fit output stride 8. (default: :obj:`None`)
        hidden_channels (int): Width of the hidden layers on a VGG. (default: :obj:`1024`)
        weights (str, optional): Pretrained weights of the backbone, see
            :func:`~pgnn_geo.nn.backbones.resolve_weights`. (default: :obj:`"DEFAULT"`)
        output_stride (int): 8, 16 or 32. (default: :obj:`8`)
        freeze_stages (int, optional): Leading backbone stages that are not trained; :obj:`None` for
            all of them. (default: :obj:`0`)
        normalize (bool): See :class:`DilatedHead`. (default: :obj:`False`)
        propagation (float, optional): The power :math:`p` above, 1 or more; :obj:`None` for none.
            (default: :obj:`None`)

    Shapes:
        - **input:** images :math:`(B, 3, H, W)`, RGB in :math:`[0, 1]`
        - **output:** logits :math:`(B, K+1, h, w)`, the first the background's

    Raises:
        InputError: If the backbone, the head or the dilations are unknown, or :obj:`propagation` is
            below 1.
    """

    backbone: Backbone
    head: DilatedHead

    def __init__(
        self,
        backbone: BackboneName = "vgg16",
        num_classes: int = 20,
        head: HeadName = "aspp",
        dilations: Sequence[int] | None = None,
        hidden_channels: int = 1024,
        weights: str | None = "DEFAULT",
        output_stride: int = 8,
        freeze_stages: int | None = 0,
        normalize: bool = False,
        propagation: float | None = None,
    ) -> None:
        super().__init__()
        if propagation is not None and propagation < 1:
            raise InputError(f"'propagation' is a power of 1 or more, or null, got {propagation}")
        if head not in HEAD_DILATIONS:
            raise InputError(f"'head' must be one of {sorted(HEAD_DILATIONS)}, got {head!r}.")
        dilations = HEAD_DILATIONS[head] if dilations is None else tuple(dilations)
        if not dilations or min(dilations) < 1 or (head == "largefov" and len(dilations) > 1):
            raise InputError(
                f"'dilations' of the {head} head must be "
                f"{'one number' if head == 'largefov' else 'numbers'} of at least 1, "
                f"got {dilations}."
            )
        self.config = {
            "backbone": backbone,
            "num_classes": num_classes,
            "head": head,
            "dilations": list(dilations),
            "hidden_channels": hidden_channels,
            "weights": weights,
            "output_stride": output_stride,
            "freeze_stages": freeze_stages,
            "normalize": normalize,
            "propagation": propagation,
        }
        self.propagation = propagation
        self.num_classes = num_classes
        self.backbone = build_backbone(backbone, weights, output_stride, freeze_stages)
        hidden = hidden_channels if isinstance(self.backbone, VGGBackbone) else None
        self.head = DilatedHead(
            self.backbone.out_channels, num_classes + 1, dilations, hidden, normalize
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "DeepLabV2":
        """Build the network of a :attr:`config`; pretrained weights are left to a state dict."""
        model = cls(**{**config, "weights": None})
        model.config = dict(config)
        if config["weights"] is not None:
            model.backbone.freeze_norms()
        return model

    @property
    def saved_config(self) -> dict[str, Any]:
        """The :attr:`config` with the stride of now."""
        return {**self.config, "output_stride": self.backbone.output_stride}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.backbone.device

    def freeze(self, stages: int | None) -> None:
        """Stop gradients in the first stages of the backbone.

        Args:
            stages (int, optional): Their number; :obj:`None` for all of them.

        Raises:
            InputError: If the backbone has fewer.
        """
        self.backbone.freeze(stages)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits at the backbone's output stride."""
        if self.training or self.propagation is None:
            return self.head(self.backbone(images))
        levels = self.backbone.last_two(images)
        logits = self.head(levels[-1] * self.backbone.scale)
        probabilities = logits.float().softmax(dim=1)
        features = compared_features(levels)
        return propagated_maps(probabilities, features, self.propagation).clamp(min=1e-7).log()

    @contextmanager
    def at_output_stride(self, output_stride: int | None) -> Iterator[None]:
        """Set the stride of the logits for the time of a :obj:`with` block.

        The dilations of the head, which belong to the stride that the network was built with,
        change with it, so that it sees as much of the photo. At stride 16 the last stages and the
        head cost a quarter of what they cost at 8, and the weights fit both.

        Args:
            output_stride (int, optional): As of :class:`DeepLabV2`; :obj:`None` changes nothing.

        Raises:
            InputError: If the backbone has no such stride, or a dilation would be no whole number.
        """
        before = self.backbone.output_stride
        if output_stride is not None:
            self._set_output_stride(output_stride)
        try:
            yield
        finally:
            self._set_output_stride(before)

    def _set_output_stride(self, output_stride: int) -> None:
        ratio = self.config["output_stride"] / output_stride
        dilations = [dilation * ratio for dilation in self.config["dilations"]]
        if any(dilation % 1 for dilation in dilations):
            raise InputError(
                f"Dilations {self.config['dilations']} at stride {self.config['output_stride']} "
                f"are no whole numbers at stride {output_stride}: {dilations}."
            )
        self.backbone.set_output_stride(output_stride)
        self.head.set_dilations([int(dilation) for dilation in dilations])
