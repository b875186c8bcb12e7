r"""Box adjusters: regressors that move any box to the object it touches, whatever its class."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, clip_boxes_to_image

from pgnn_geo.boxes.image_boxes import ImageBoxes
from pgnn_geo.boxes.weak_detector import PoolName, hidden_layers, pool_boxes, reset_hidden
from pgnn_geo.errors import InputError
from pgnn_geo.nn.backbones import Backbone, BackboneName, build_backbone
from pgnn_geo.options import constructor_arguments

_LARGEST = 1.5  # of any offset: 1.5 widths, or a factor of 4.5


def encode_boxes(boxes: Tensor, targets: Tensor) -> Tensor:
    r"""Return the offsets :math:`(d_x, d_y, d_w, d_h)` that lead from boxes to their targets.

    With centre :math:`(x, y)`, width and height of the box and, starred, of the target,

    .. math::
        d_x = \frac{x^* - x}{w}, \qquad d_y = \frac{y^* - y}{h}, \qquad
        d_w = \log \frac{w^*}{w}, \qquad d_h = \log \frac{h^*}{h}

    They do not change if box and target are moved, mirrored (but for the sign of :math:`d_x`) or
    stretched together. :func:`decode_boxes` is the inverse.

    Args:
        boxes (torch.Tensor): Boxes xyxy with an area :obj:`[n, 4]`.
        targets (torch.Tensor): Boxes xyxy with an area :obj:`[n, 4]`.
    """
    centre, size = _centre_size(boxes)
    target_centre, target_size = _centre_size(targets)
    return torch.cat([(target_centre - centre) / size, (target_size / size).log()], dim=-1)


def decode_boxes(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Move boxes :obj:`[n, 4]` by offsets :obj:`[n, 4]`: the inverse of :func:`encode_boxes`."""
    centre, size = _centre_size(boxes)
    centre = centre + offsets[..., :2] * size
    half = size * offsets[..., 2:].exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def jitter_boxes(boxes: Tensor, count: int, min_iou: float = 0.3) -> tuple[Tensor, Tensor]:
    """Draw boxes that overlap given ones, to learn the way back from.

    Offsets are normal with standard deviation 0.3, and shrunk until the overlap is large enough.

    Args:
        boxes (torch.Tensor): Boxes xyxy with an area :obj:`[n, 4]`.
        count (int): Draws for each.
        min_iou (float): Least overlap (intersection over union). (default: :obj:`0.3`)

    Returns:
        The drawn boxes and what they were drawn around, both :obj:`[n * count, 4]`.
    """
    targets = boxes.repeat_interleave(count, dim=0)
    offsets = 0.3 * torch.randn(targets.shape, dtype=targets.dtype).to(targets.device)
    while True:
        drawn = decode_boxes(targets, offsets)
        far = _paired_iou(drawn, targets) < min_iou
        if not far.any():
            return drawn, targets
        offsets = torch.where(far[:, None], 0.7 * offsets, offsets)


class BoxAdjuster(nn.Module):
    r"""A class-agnostic box regressor in the manner of `"Boosting Weakly Supervised Object
    Detection via Learning Bounding Box Adjusters" <https://arxiv.org/abs/2108.01499>`_.

    A box is pooled from the feature map and two hidden layers tell the offsets
    (:func:`encode_boxes`) to the object that it overlaps:

    .. math::
        g(\mathbf{b}) = \mathrm{decode}(\mathbf{b}, \mathbf{W} \boldsymbol{\varphi}(\mathbf{b}))

    It is learned from boxes that people drew in an auxiliary data set, of other classes as a rule
    (:func:`~pgnn_geo.boxes.training.train_adjuster`), and then moves the pseudo ground truth
    and the detections of a :class:`WeakDetector`. What is made with it is not made from tags
    alone: the ledger says "boxes: auxiliary". The paper's adjusters are one per step of an
    expectation-maximisation; this is one, which may be applied several times.

    Frozen stages of the backbone are shared with the detector's, whose :obj:`freeze_stages` and
    weights must be the same.

    Args:
        backbone, pool, pool_size, hidden_channels, weights, output_stride, freeze_stages: See
            :class:`WeakDetector`.

    Shapes:
        - **input:** images :math:`(B, 3, H, W)` in :math:`[0, 1]`; for each of them boxes
          :math:`(r_b, 4)` xyxy in its pixels
        - **output:** offsets :math:`(\sum_b r_b, 4)`
    """

    def __init__(
        self,
        backbone: BackboneName = "vgg16",
        pool: PoolName = "max",
        pool_size: int = 7,
        hidden_channels: int = 512,
        weights: str | None = "DEFAULT",
        output_stride: int = 16,
        freeze_stages: int = 4,
    ) -> None:
        config = constructor_arguments(locals())
        super().__init__()
        self.config = config
        self.pool = pool
        self.pool_size = pool_size
        self.backbone = build_backbone(backbone, weights, output_stride, freeze_stages)
        self.hidden = hidden_layers(
            self.backbone.out_channels * pool_size**2, hidden_channels, dropout=0.0
        )
        self.lin_offset = nn.Linear(hidden_channels, 4)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw hidden layers by He's rule; the last layer is zero: boxes stay where they are."""
        reset_hidden(self.hidden)
        nn.init.zeros_(self.lin_offset.weight)
        nn.init.zeros_(self.lin_offset.bias)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "BoxAdjuster":
        """Build the network of a :attr:`config`; pretrained weights are left to a state dict."""
        model = cls(**{**config, "weights": None})
        model.config = dict(config)
        if config["weights"] is not None:
            model.backbone.freeze_norms()
        return model

    def forward(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Return the offsets of all boxes."""
        return self.forward_features(self.backbone(images), boxes)

    def forward_features(self, features: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Run what follows the backbone on features :obj:`[B, C, h, w]`, see :meth:`forward`."""
        pooled, _ = pool_boxes(
            features, boxes, self.pool_size, self.backbone.output_stride, self.pool
        )
        return self.lin_offset(self.hidden(pooled.flatten(1))).float()

    @torch.no_grad()
    def adjust(
        self,
        features: Tensor,
        boxes: Sequence[ImageBoxes],
        size: tuple[int, int],
        steps: int = 1,
    ) -> list[ImageBoxes]:
        """Move boxes, their classes and scores kept; they stay in the image and a pixel wide.

        Args:
            features (torch.Tensor): The adjuster's own features :obj:`[B, C, h, w]`.
            boxes (sequence of ImageBoxes): For each image, boxes in its pixels.
            size (tuple of int): Height and width of the images.
            steps (int): How often the boxes are moved. (default: :obj:`1`)
        """
        moved = [own.boxes for own in boxes]
        counts = [len(own) for own in moved]
        for _ in range(steps if sum(counts) else 0):
            offsets = self.forward_features(features, moved).clamp(-_LARGEST, _LARGEST)
            moved = [
                _keep_inside(decode_boxes(own, delta.to(own.device)), size)
                for own, delta in zip(moved, offsets.split(counts), strict=True)
            ]
        return [
            ImageBoxes(own, old.classes, old.scores) for own, old in zip(moved, boxes, strict=True)
        ]


def check_shared_stages(first: Backbone, second: Backbone) -> None:
    """Check that the frozen stages of two backbones are the same, so that one run serves both.

    Raises:
        InputError: If they are not.
    """
    frozen = []
    for backbone in (first, second):
        stages = backbone.stages[: backbone.frozen_stages]
        frozen.append([backbone.mean, backbone.std, *stages.state_dict().values()])
    same = len(frozen[0]) == len(frozen[1]) and all(
        a.shape == b.shape and torch.equal(a.cpu(), b.cpu()) for a, b in zip(*frozen, strict=True)
    )
    if not same:
        raise InputError(
            "The adjuster does not fit the detector: their frozen stages differ. Train it with the "
            "same --network.backbone, --network.weights and --network.freeze_stages."
        )


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low


def _paired_iou(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat(
        [box_iou(a, b).diagonal() for a, b in zip(first.split(256), second.split(256), strict=True)]
    )


def _keep_inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes at the borders of the image, and widen what is left to a pixel."""
    height, width = size
    limit = boxes.new_tensor([width, height])
    low = torch.minimum(clip_boxes_to_image(boxes, size)[:, :2], limit - 1)
    high = torch.maximum(clip_boxes_to_image(boxes, size)[:, 2:], low + 1)
    return torch.cat([low, high], dim=1)
