"""One layer of P-GNN: weighted edges, and what follows them (Fig. 3)."""

from typing import Any

from torch import Tensor, nn
from torch_geometric.typing import Adj

from pgnn_geo.errors import InputError
from pgnn_geo.graph.checks import describe
from pgnn_geo.nn.complementary_conv import ComplementaryConv, NormalizeName


class ComplementaryBlock(nn.Module):
    r"""One layer of `"Maximize the Exploration of Congeneric Semantics for Weakly Supervised
    Semantic Segmentation" <https://arxiv.org/abs/2110.03982>`_ (Fig. 3): weighted edges with a
    residual, then a convolution over the positions of each node and layer normalization.

    .. math::
        \mathbf{h} &= \mathbf{x} + \mathrm{ComplementaryConv}(\mathbf{x})

        \mathbf{x}^{\prime} &= \mathbf{h} + \mathrm{LayerNorm}(\mathbf{W} * \mathbf{h})

    Layer normalization runs over the channels and positions of a node, so that positions keep their
    relative strength. Either branch ends in a map that starts at zero, as with
    :obj:`zero_init_residual` of torchvision's ResNet: a fresh block is the identity, and the
    features of a pretrained backbone reach the decoder unharmed.

    Args:
        channels (int): Channels of input and output.
        heads (int): Number of attention heads. (default: :obj:`8`)
        num_classes (int, optional): Number of foreground classes, whose relation is a bias on the
            attention, see :class:`ComplementaryConv`. (default: :obj:`None`)
        dropout (float): Dropout probability of the attention weights. (default: :obj:`0.0`)
        kernel_size (int): Odd size of the convolution. (default: :obj:`3`)
        conv_groups (int): Channel groups of the convolution; :obj:`channels` for a depthwise one,
            which costs next to nothing. (default: :obj:`1`)
        zero_init (bool): Whether a fresh block is the identity. (default: :obj:`True`)
        normalize (str): How the attention weights are normalized, :obj:`"softmax"` or
            :obj:`"sinkhorn"`, see :class:`ComplementaryConv`. (default: :obj:`"softmax"`)

    Shapes:
        - **input:** nodes :math:`(|\mathcal{V}|, C, p, p)`; edges :math:`(2, |\mathcal{E}|)` *or*
          batch :math:`(|\mathcal{V}|)`; node classes :math:`(|\mathcal{V}|)`
        - **output:** nodes :math:`(|\mathcal{V}|, C, p, p)`
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        num_classes: int | None = None,
        dropout: float = 0.0,
        kernel_size: int = 3,
        conv_groups: int = 1,
        zero_init: bool = True,
        normalize: NormalizeName = "softmax",
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(f"`kernel_size`: expected an odd number, got {kernel_size}")
        self.zero_init = zero_init
        self.attention = ComplementaryConv(
            channels, heads=heads, num_classes=num_classes, dropout=dropout, normalize=normalize
        )
        # Layer normalization, which follows, takes a bias common to all its inputs away again, but
        # not one per channel: so the convolution keeps its own.
        self.conv = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=conv_groups
        )
        self.norm = nn.GroupNorm(1, channels)  # one group: layer normalization, channels first
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.attention.reset_parameters()
        self.conv.reset_parameters()
        self.norm.reset_parameters()
        if self.zero_init:
            nn.init.zeros_(self.attention.lin_out.weight)
            nn.init.zeros_(self.attention.lin_out.bias)
            nn.init.zeros_(self.norm.weight)

    def forward(
        self, x: Tensor, edge_index: Adj | None = None, **kwargs: Any
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Let patches attend to each other and each look at its own positions.

        Args:
            x (torch.Tensor): The nodes.
            edge_index (torch.Tensor, optional): The edges, sources first. (default: :obj:`None`)
            **kwargs: Arguments of :meth:`ComplementaryConv.forward`, such as :obj:`batch`,
                :obj:`batch_size`, :obj:`node_class` or :obj:`return_attention_weights`.

        Raises:
            InputError: If the nodes are not :obj:`[V, C, p, p]`, or as
                :class:`ComplementaryConv` does.
        """
        if not isinstance(x, Tensor) or x.dim() != 4:
            raise InputError(f"`x`: expected [V, {self.conv.in_channels}, p, p], got {describe(x)}")
        message = self.attention(x, edge_index, **kwargs)
        weights = None
        if isinstance(message, tuple):
            message, weights = message
        x = x + message
        x = x + self.norm(self.conv(x))
        return x if weights is None else (x, weights)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.conv.in_channels}, heads={self.attention.heads})"
