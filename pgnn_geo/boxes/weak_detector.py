r"""A detector of objects that learns from image tags: two streams and their refinement."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter, softmax
from torchvision.ops import roi_align, roi_pool

from pgnn_geo.boxes.image_boxes import ImageBoxes
from pgnn_geo.errors import InputError
from pgnn_geo.nn.backbones import BackboneName, build_backbone
from pgnn_geo.options import constructor_arguments

PoolName = Literal["max", "align"]


class WeakDetectorOutput(NamedTuple):
    """What :class:`WeakDetector` returns for :math:`B` images with :math:`R` proposals in all."""

    image_scores: Tensor  #: class scores of the images [B, K] in [0, 1]; 0 without a proposal
    proposal_scores: Tensor  #: products of the two streams [R, K]; they sum to image_scores
    refined: tuple[Tensor, ...]  #: logits [R, K+1] of each refinement, the first the background's
    image_batch: Tensor  #: the image of each proposal [R]

    @property
    def stage_scores(self) -> list[Tensor]:
        """Class scores :obj:`[R, K]` of the two streams, then of each refinement."""
        return [self.proposal_scores, *(logits.softmax(1)[:, 1:] for logits in self.refined)]

    @property
    def scores(self) -> Tensor:
        """Class scores :obj:`[R, K]` to detect by: those of the last stage."""
        return self.stage_scores[-1]


class WeakDetector(nn.Module):
    r"""WSDDN of `"Weakly Supervised Deep Detection Networks" <https://arxiv.org/abs/1511.02853>`_
    with the refinements (OICR) of `"Multiple Instance Detection Network with Online Instance
    Classifier Refinement" <https://arxiv.org/abs/1704.00138>`_.

    Proposals :math:`r` of an image are pooled from its feature map to vectors
    :math:`\boldsymbol{\varphi}_r`. One stream asks what each proposal shows, the other which
    proposal shows a class best, and the classes of the image are the sums of their products:

    .. math::
        s_{rk} = \underset{k}{\mathrm{softmax}} (\mathbf{W}_c \boldsymbol{\varphi}_r)_k \cdot
        \underset{r}{\mathrm{softmax}} (\mathbf{W}_d \boldsymbol{\varphi}_r)_k, \qquad
        \hat{y}_k = \sum_r s_{rk} \in [0, 1]

    which is all that tags have to teach. Each of the :math:`S` refinements is a classifier
    :math:`p^{(s)}_r = \mathrm{softmax}(\mathbf{W}_s \boldsymbol{\varphi}_r)` over :math:`K + 1`
    labels, taught by the scores of the stage before it, see :func:`~pgnn_geo.boxes.oicr_labels`.
    Detections have the score :math:`p^{(S)}_{rk}` of the last one, or :math:`s_{rk}` without
    refinements. (OICR takes the mean over all; where few photos teach, the first ones still prefer
    the most striking part.)

    The hidden layers are drawn at random: torchvision's weights for segmentation hold those of the
    convolutions only.

    Args:
        backbone (str): :obj:`"vgg16"`, :obj:`"resnet101"` or :obj:`"vgg_tiny"`.
            (default: :obj:`"vgg16"`)
        num_classes (int): :math:`K`. (default: :obj:`20`)
        refinements (int): :math:`S`. (default: :obj:`3`)
        pool (str): Pooling of proposals: :obj:`"max"` over the positions of each cell, or
            :obj:`"align"`, of interpolated samples, whose gradient takes ten times longer on a CPU.
            (default: :obj:`"max"`)
        pool_size (int): Cells per side of a pooled proposal. (default: :obj:`7`)
        hidden_channels (int): Width of the two hidden layers (fc6 and fc7 of VGG have 4096).
            (default: :obj:`1024`)
        dropout (float): Dropout after each of them. (default: :obj:`0.5`)
        weights (str, optional): Pretrained weights, see
            :func:`~pgnn_geo.nn.backbones.resolve_weights`. (default: :obj:`"DEFAULT"`)
        output_stride (int): Stride of the feature map. (default: :obj:`16`)
        freeze_stages (int): Leading backbone stages that are not trained. (default: :obj:`4`)
        sizes (sequence of int, optional): Sides of the squares that it was trained on; training
            sets them. (default: :obj:`None`)

    Shapes:
        - **input:** images :math:`(B, 3, H, W)` in :math:`[0, 1]`; for each of them proposals
          :math:`(r_b, 4)` xyxy in its pixels, :math:`r_b = 0` included
        - **output:** :class:`WeakDetectorOutput`

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        backbone: BackboneName = "vgg16",
        num_classes: int = 20,
        refinements: int = 3,
        pool: PoolName = "max",
        pool_size: int = 7,
        hidden_channels: int = 1024,
        dropout: float = 0.5,
        weights: str | None = "DEFAULT",
        output_stride: int = 16,
        freeze_stages: int = 4,
        sizes: Sequence[int] | None = None,
    ) -> None:
        config = constructor_arguments(locals())
        super().__init__()
        if pool not in ("max", "align"):
            raise InputError(f"'pool' must be 'max' or 'align', got {pool!r}.")
        least = {"num_classes": 1, "refinements": 0, "pool_size": 1, "hidden_channels": 1}
        for name, bound in least.items():
            if config[name] < bound:
                raise InputError(f"'{name}' must be {bound} or more, got {config[name]}.")
        self.config = config
        self.set_sizes(sizes)
        self.num_classes = num_classes
        self.pool = pool
        self.pool_size = pool_size
        self.backbone = build_backbone(backbone, weights, output_stride, freeze_stages)
        self.hidden = hidden_layers(
            self.backbone.out_channels * pool_size**2, hidden_channels, dropout
        )
        self.lin_class = nn.Linear(hidden_channels, num_classes)
        self.lin_detection = nn.Linear(hidden_channels, num_classes)
        self.lin_refine = nn.ModuleList(
            nn.Linear(hidden_channels, num_classes + 1) for _ in range(refinements)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw hidden layers by He's rule and classifiers with standard deviation 0.01."""
        reset_hidden(self.hidden)
        for layer in (self.lin_class, self.lin_detection, *self.lin_refine.children()):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "WeakDetector":
        """Build the network of a :attr:`config`; pretrained weights are left to a state dict."""
        model = cls(**{**config, "weights": None})
        model.config = dict(config)
        if config["weights"] is not None:
            model.backbone.freeze_norms()
        return model

    def set_sizes(self, sizes: Sequence[int] | None) -> "WeakDetector":
        """Set the sides of the squares that it is made for, in place."""
        self.sizes = None if sizes is None else tuple(sizes)
        self.config["sizes"] = None if sizes is None else list(sizes)
        return self

    def forward(self, images: Tensor, proposals: Sequence[Tensor]) -> WeakDetectorOutput:
        """Return scores of images and proposals.

        Raises:
            InputError: If the proposals do not fit the images.
        """
        if images.dim() != 4 or images.size(1) != 3:
            raise InputError(f"'images' must be [B, 3, H, W], got {list(images.shape)}.")
        return self.forward_features(self.backbone(images), proposals)

    def forward_features(self, features: Tensor, proposals: Sequence[Tensor]) -> WeakDetectorOutput:
        """Run what follows the backbone on features :obj:`[B, C, h, w]`, see :meth:`forward`."""
        pooled, image_batch = pool_boxes(
            features, proposals, self.pool_size, self.backbone.output_stride, self.pool
        )
        x = self.hidden(pooled.flatten(1))  # [R, hidden]
        # In float32: over thousands of proposals, half precision cannot tell sums from 1.
        what = self.lin_class(x).float().softmax(1)  # [R, K]
        where = softmax(self.lin_detection(x).float(), image_batch, num_nodes=len(features))
        scores = what * where  # [R, K]
        sums = scatter(scores, image_batch, dim_size=len(features))  # [B, K]
        refined = tuple(layer(x).float() for layer in self.lin_refine)
        return WeakDetectorOutput(sums.clamp(max=1), scores, refined, image_batch)

    @torch.no_grad()
    def detect(
        self,
        images: Tensor,
        proposals: Sequence[Tensor],
        tags: Tensor | None = None,
        nms: float = 0.3,
        min_score: float = 1e-3,
        max_boxes: int = 100,
        vote: bool = True,
    ) -> list[ImageBoxes]:
        """Return the boxes of each image, in its pixels; call :meth:`eval` first.

        Args:
            images (torch.Tensor): Images :obj:`[B, 3, H, W]` in :math:`[0, 1]`.
            proposals (sequence of torch.Tensor): For each, :obj:`[r_b, 4]` in its pixels.
            tags (torch.Tensor, optional): Multi-hot tags :obj:`[B, K]`: there are no boxes of
                other classes.
            nms, min_score, max_boxes, vote: See :func:`select_boxes`.
        """
        output = self(images, proposals)
        scores = output.scores.split([len(boxes) for boxes in proposals])
        rows: Sequence[Tensor | None] = [None] * len(images) if tags is None else list(tags)
        return [
            select_boxes(boxes, own, row, nms, min_score, max_boxes, vote)
            for boxes, own, row in zip(proposals, scores, rows, strict=True)
        ]


def select_boxes(
    proposals: Tensor,
    scores: Tensor,
    tags: Tensor | None = None,
    nms: float = 0.3,
    min_score: float = 1e-3,
    max_boxes: int = 100,
    vote: bool = True,
) -> ImageBoxes:
    """Turn class scores of one image's proposals into boxes, the highest score first.

    Args:
        proposals (torch.Tensor): Boxes :obj:`[r, 4]`.
        scores (torch.Tensor): Their scores :obj:`[r, K]`.
        tags (torch.Tensor, optional): Multi-hot tags :obj:`[K]`: there are no boxes of other
            classes.
        nms (float): A box is dropped if it overlaps a better one of its class by more than this.
            (default: :obj:`0.3`)
        min_score (float): Boxes of lower scores are dropped. (default: :obj:`1e-3`)
        max_boxes (int): Boxes of all classes that are kept. (default: :obj:`100`)
        vote (bool): Move the boxes that are kept to the mean of those that they stand for, see
            :meth:`ImageBoxes.voted`. (default: :obj:`True`)
    """
    keep = scores >= min_score
    if tags is not None:
        keep &= tags.to(scores.device).bool()
    rows, columns = keep.nonzero(as_tuple=True)
    values = scores[rows, columns].float().clamp(0, 1)
    boxes = ImageBoxes(proposals[rows.to(proposals.device)].cpu(), columns.cpu() + 1, values.cpu())
    best = boxes.nms(nms).top(max_boxes)
    return best.voted(boxes, nms) if vote else best


def pool_boxes(
    features: Tensor, boxes: Sequence[Tensor], size: int, stride: int, pool: PoolName = "max"
) -> tuple[Tensor, Tensor]:
    """Pool boxes from feature maps to a fixed size.

    Args:
        features (torch.Tensor): Feature maps :obj:`[B, C, h, w]`.
        boxes (sequence of torch.Tensor): For each, :obj:`[r_b, 4]` in pixels of its image.
        size (int): Cells per side of the result.
        stride (int): Pixels per position of the feature map.
        pool (str): See :class:`WeakDetector`. (default: :obj:`"max"`)

    Returns:
        Pooled features :obj:`[R, C, size, size]` and the image of each box :obj:`[R]`.

    Raises:
        InputError: If there is not one :obj:`[r_b, 4]` for each feature map.
    """
    if len(boxes) != len(features) or any(b.dim() != 2 or b.size(1) != 4 for b in boxes):
        raise InputError(
            f"Want boxes [r, 4] for each of {len(features)} images, got "
            f"{[list(own.shape) for own in boxes]}."
        )
    counts = torch.tensor([len(own) for own in boxes])
    image_batch = torch.arange(len(boxes)).repeat_interleave(counts).to(features.device)
    # torchvision pools in half precision on no CPU, and coordinates need more digits in any case.
    features, flat = features.float(), torch.cat(list(boxes)).to(features.device, torch.float)
    rois = torch.cat([image_batch[:, None].float(), flat], dim=1)  # [R, 5]
    if pool == "max":
        return roi_pool(features, rois, size, 1 / stride), image_batch
    return roi_align(features, rois, size, 1 / stride, 2, aligned=True), image_batch


def hidden_layers(in_channels: int, hidden_channels: int, dropout: float) -> nn.Sequential:
    """Two linear layers with ReLU and dropout: fc6 and fc7 of VGG."""
    return nn.Sequential(
        nn.Linear(in_channels, hidden_channels),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden_channels, hidden_channels),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )


def reset_hidden(layers: nn.Sequential) -> None:
    """Draw the layers of :func:`hidden_layers` by He's rule."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
