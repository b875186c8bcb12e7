r"""P-GNN: backbone, patch graph, weighted edges, decoder."""

from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch_geometric.data import Batch

from pgnn_geo.errors import InputError
from pgnn_geo.graph import PatchGraphBuilder, stitch
from pgnn_geo.graph.geometry import patch_class
from pgnn_geo.nn import checks
from pgnn_geo.nn.backbones import BackboneName, build_backbone
from pgnn_geo.nn.class_embedding import ClassEmbedding
from pgnn_geo.nn.complementary_block import ComplementaryBlock
from pgnn_geo.nn.complementary_conv import NormalizeName
from pgnn_geo.nn.decoder import ActivationName, AttentionDecoder, activate
from pgnn_geo.options import constructor_arguments

ClassEmbeddingName = Literal["attention", "input"]
NodeClassesName = Literal["none", "maps"]


class PGNNOutput(NamedTuple):
    """What :class:`PGNN` returns for :math:`B` images and :math:`K` classes."""

    attention: Tensor  #: attention maps [B, K, h, w] in [0, 1], zero for classes not in the tags
    logits: Tensor  #: class logits after the graph [B, K]
    backbone_logits: Tensor | None  #: class logits before the graph [B, K]; None without a graph
    batch: Batch | None  #: the graphs of the attended nodes; None without a graph
    scores: Tensor  #: class scores before activation [B, K, h, w]; their means are the logits
    backbone_scores: Tensor | None  #: the same before the graph; None without a graph


class PGNN(nn.Module):
    r"""The P-GNN of `"Maximize the Exploration of Congeneric Semantics for Weakly Supervised
    Semantic Segmentation" <https://arxiv.org/abs/2110.03982>`_.

    The feature maps of a group of images of one class are cut into patches, which become the nodes
    of one complete graph; :class:`ComplementaryBlock` passes messages along its weighted edges
    (Eq. 2 and 3); the nodes are stitched back and decoded to one attention map per class:

    .. math::
        \mathbf{A} = \mathrm{norm}(\mathrm{Decoder}(\mathrm{stitch}(
        \mathrm{Blocks}(\mathrm{patches}(\mathrm{Backbone}(\mathbf{I}))))))

    With :obj:`layers=0` there is no graph and the network is the paper's baseline, a class
    activation map (CAM) of the same backbone and the same decoder.

    Args:
        backbone (str): :obj:`"vgg16"` or :obj:`"resnet101"`. (default: :obj:`"vgg16"`)
        num_classes (int): Number of foreground classes :math:`K`. (default: :obj:`20`)
        grid (int): Patches per side of the feature map. (default: :obj:`4`)
        box_size (int, optional): If given, nodes are boxes pooled to this many positions per side
            plus one background node per image, and :obj:`grid` is unused. (default: :obj:`None`)
        layers (int): Number of blocks :math:`L`; 0 for the CAM baseline. (default: :obj:`1`)
        heads (int): Attention heads. (default: :obj:`8`)
        class_embedding (str, optional): What the classes of nodes do (Eq. 4): :obj:`"attention"`,
            a bias on the attention, see :class:`ClassRelation`; :obj:`"input"`, the paper's form,
            one :class:`ClassEmbedding` added to the nodes before the first block; :obj:`None`,
            nothing: nodes then need no class. (default: :obj:`None`)
        weights (str, optional): Pretrained weights, see
            :func:`~pgnn_geo.nn.backbones.resolve_weights`. (default: :obj:`"DEFAULT"`)
        output_stride (int): 8, 16 or 32. (default: :obj:`16`)
        freeze_stages (int): Leading backbone stages that are not trained. (default: :obj:`0`)
        activation (str): How scores become maps, see :func:`~pgnn_geo.nn.decoder.activate`:
            :obj:`"relu"` or :obj:`"softmax"`. (default: :obj:`"relu"`)
        node_classes (str): Where the classes of grid nodes come from, if they do something and
            :obj:`node_class` is not given: :obj:`"maps"`: with :obj:`tags`, the maps of the head
            before the graph, see :func:`~pgnn_geo.graph.geometry.patch_class`; :obj:`"none"`: all
            are background, as until there are maps. (default: :obj:`"none"`)
        top_k (int, optional): With :obj:`box_size`, boxes of an image that become nodes, the first
            ones; all if not given. (default: :obj:`None`)
        normalize (str): How the weights of edges are normalized, :obj:`"softmax"` or
            :obj:`"sinkhorn"`, see :class:`ComplementaryConv`. (default: :obj:`"softmax"`)

    Shapes:
        - **input:** images :math:`(B, 3, H, W)` in :math:`[0, 1]`; group :math:`(B)` sorted group
          ids; tags :math:`(B, K)`; node_class :math:`(V)`
        - **output:** :class:`PGNNOutput`

    .. code-block:: python

        model = PGNN(num_classes=20, weights=None)
        result = model(images, group=torch.tensor([0, 0, 0, 1, 1, 1]), tags=tags)
        result.attention  # [6, 20, h, w]
    """

    def __init__(
        self,
        backbone: BackboneName = "vgg16",
        num_classes: int = 20,
        grid: int = 4,
        box_size: int | None = None,
        layers: int = 1,
        heads: int = 8,
        class_embedding: ClassEmbeddingName | None = None,
        weights: str | None = "DEFAULT",
        output_stride: int = 16,
        freeze_stages: int = 0,
        activation: ActivationName = "relu",
        node_classes: NodeClassesName = "none",
        top_k: int | None = None,
        normalize: NormalizeName = "softmax",
    ):
        config = constructor_arguments(locals())
        super().__init__()
        self.config = config
        self.activation = activation
        self.node_classes = node_classes
        if layers < 0:
            raise InputError(f"'layers' must be 0 (no graph: CAM) or more, got {layers}.")
        if top_k is not None and (box_size is None or top_k < 1):
            raise InputError(f"'top_k' must be 1 or more and needs 'box_size', got {top_k}.")
        self.top_k = top_k
        self.num_classes = num_classes
        self.backbone = build_backbone(backbone, weights, output_stride, freeze_stages)
        channels = self.backbone.out_channels
        self.builder = (
            PatchGraphBuilder(box_size=box_size, background=True)
            if box_size is not None
            else PatchGraphBuilder(grid=grid)
        )
        self.blocks = nn.ModuleList(
            ComplementaryBlock(
                channels,
                heads=heads,
                num_classes=num_classes if class_embedding == "attention" else None,
                conv_groups=channels,  # depthwise: a full one would cost as much as a VGG layer
                normalize=normalize,
            )
            for _ in range(layers)
        )
        with_input = layers > 0 and class_embedding == "input"
        self.class_embedding = ClassEmbedding(num_classes, channels) if with_input else None
        # The head before the graph keeps the features telling by themselves.
        self.backbone_decoder = AttentionDecoder(channels, num_classes) if layers else None
        self.decoder = AttentionDecoder(channels, num_classes)

    @property
    def needs_boxes(self) -> bool:
        """Whether there is a graph and its nodes are boxes."""
        return len(self.blocks) > 0 and self.builder.grid is None

    def set_activation(self, activation: ActivationName) -> "PGNN":
        """Set how scores become maps, in place, see :class:`PGNN`."""
        self.activation = activation
        self.config["activation"] = activation
        return self

    def set_node_classes(self, node_classes: NodeClassesName) -> "PGNN":
        """Set where classes of nodes come from, in place, see :class:`PGNN`."""
        self.node_classes = node_classes
        self.config["node_classes"] = node_classes
        return self

    def forward(
        self,
        images: Tensor,
        group: Tensor | None = None,
        tags: Tensor | None = None,
        node_class: Tensor | None = None,
        boxes: list[Tensor] | None = None,
        box_class: list[Tensor] | None = None,
    ) -> PGNNOutput:
        """Return attention maps and logits of a batch of image groups.

        Args:
            images (torch.Tensor): Images :obj:`[B, 3, H, W]` in :math:`[0, 1]`.
            group (torch.Tensor, optional): Sorted group ids :obj:`[B]`; one group if not given.
            tags (torch.Tensor, optional): Multi-hot image tags :obj:`[B, K]`; attention maps of
                other classes are set to zero. They do not enter the network, but for
                :obj:`node_classes="maps"`.
            node_class (torch.Tensor, optional): Class of each grid node :obj:`[V]`.
            boxes, box_class (list of torch.Tensor, optional): Per image, :obj:`[k, 4]` boxes in
                feature pixels and their classes :obj:`[k]`, the best first if there is
                :obj:`top_k`.

        Raises:
            InputError: If an argument has the wrong rank, order or range.
        """
        if images.dim() != 4 or images.size(1) != 3:
            raise InputError(f"'images' must be [B, 3, H, W], got {list(images.shape)}.")
        return self.forward_features(
            self.backbone(images), group, tags, node_class, boxes, box_class
        )

    def forward_features(
        self,
        features: Tensor,
        group: Tensor | None = None,
        tags: Tensor | None = None,
        node_class: Tensor | None = None,
        boxes: list[Tensor] | None = None,
        box_class: list[Tensor] | None = None,
    ) -> PGNNOutput:
        """Run what follows the backbone on features :obj:`[B, C, h, w]`, see :meth:`forward`."""
        batch, backbone_scores, backbone_logits = None, None, None
        if self.backbone_decoder is not None:
            backbone_scores, backbone_logits = self.backbone_decoder(features)
            grid = self.builder.grid  # boxes have classes of their own
            from_maps = self.node_classes == "maps" and self.config["class_embedding"] is not None
            if node_class is None and tags is not None and from_maps and grid is not None:
                maps = activate(backbone_scores.detach(), self.activation, tags)
                node_class = patch_class(maps, grid)
            if self.top_k is not None:
                boxes, box_class = (
                    None if part is None else [own[: self.top_k] for own in part]
                    for part in (boxes, box_class)
                )
            batch = self.builder(
                features, group=group, node_class=node_class, boxes=boxes, box_class=box_class
            )
            if self.config["class_embedding"] is not None:
                checks.class_range(batch.node_class, self.num_classes)
            if self.class_embedding is not None:
                batch.x = self.class_embedding(batch.x, batch.node_class)
            for block in self.blocks:
                batch.x = block(
                    batch.x,
                    batch=batch.batch,
                    batch_size=batch.num_graphs,
                    max_num_nodes=batch.max_num_nodes,
                    node_class=batch.node_class,
                )
            features = stitch(batch)
        scores, logits = self.decoder(features)
        attention = activate(scores, self.activation, tags)
        return PGNNOutput(attention, logits, backbone_logits, batch, scores, backbone_scores)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.class_embedding is not None and f"{prefix}class_embedding.weight" not in state_dict:
            raise InputError(
                "class_embedding='input': the checkpoint has no embedding of nodes; before version "
                "0.2 each block had one of its own, which left out its residual: train again"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
