"""The weighted edges of P-GNN (Eq. 2 and 3)."""

from typing import Any, Literal, Optional, get_args

import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.typing import Adj, OptTensor, PairTensor
from torch_geometric.utils import softmax

from pgnn_geo.errors import InputError, expect
from pgnn_geo.nn import checks
from pgnn_geo.nn.channel_linear import ChannelLinear
from pgnn_geo.nn.class_embedding import ClassRelation
from pgnn_geo.nn.dense_attention import group_attention, make_groups
from pgnn_geo.nn.edge_attention import edge_attention, is_worthwhile
from pgnn_geo.nn.fusion import is_plain
from pgnn_geo.nn.sinkhorn import edge_potential

#: How the weights of edges are normalized.
NormalizeName = Literal["softmax", "sinkhorn"]


class ComplementaryConv(MessagePassing):
    r"""The complementary operator of `"Maximize the Exploration of Congeneric Semantics for Weakly
    Supervised Semantic Segmentation" <https://arxiv.org/abs/2110.03982>`_ (Eq. 2 and 3) in
    multi-head form: attention over nodes whose features may have positions.

    .. math::
        \mathbf{x}^{\prime}_{\alpha,u} = \mathbf{W}_O \, \big\Vert_{m=1}^{H}
        \sum_{\beta \in \mathcal{N}(\alpha)} E^m_{\alpha\beta} \mathbf{W}^m_V \mathbf{x}_{\beta,u}

    The weights compare the nodes' means over positions :math:`\mathbf{n}_{\alpha}`, with a bias
    :math:`b^m_{\alpha\beta}` of their classes (:class:`ClassRelation`):

    .. math::
        E^m_{\alpha\beta} = \mathrm{softmax}_{\beta} \left( \frac{
        (\mathbf{W}^m_Q \mathbf{n}_{\alpha})^{\top} \mathbf{W}^m_K \mathbf{n}_{\beta}}{\sqrt{d}}
        + b^m_{\alpha\beta} \right)

    With :obj:`normalize="sinkhorn"` the same logits are a transport plan: every node is listened to
    as much as it listens, so that no hub speaks for all. Rows and columns of :math:`e^{\mathbf{L}}`
    are normalized in turns (`"Concerning nonnegative matrices and doubly stochastic matrices"
    <https://doi.org/10.2140/pjm.1967.21.343>`_), in the log domain, and rows come last:

    .. math::
        E^m_{\alpha\beta} = \mathrm{softmax}_{\beta} \left( l^m_{\alpha\beta} + v^m_{\beta}
        \right), \qquad
        v_{\beta} = - \log \sum_{\alpha} e^{l_{\alpha\beta}} \Big/ \sum_{\gamma}
        e^{l_{\alpha\gamma} + v_{\gamma}} \quad \text{(}T\text{ times, from } v = 0 \text{)}

    The weights of a target's edges sum to one as they do with softmax. In a complete graph the sums
    :math:`c_{\beta}` of the sources' weights come out equal, 1 if there are as many sources as
    targets: after :math:`T` rounds

    .. math::
        \frac{\max c}{\min c} \leq e^{\kappa^{2T - 1} \Delta}, \qquad
        \kappa = \tanh \frac{\Delta}{4}, \qquad
        \Delta = \max \left( l_{\alpha\beta} + l_{\gamma\delta} - l_{\alpha\delta} -
        l_{\gamma\beta} \right)

    (with :math:`\Delta = 4` and ten rounds, by 2.3 percent). On other edges they are as equal as
    the edges allow.

    On :obj:`edge_index` it passes messages. On :obj:`batch` or :obj:`batch_size` it joins all nodes
    of a group, loops included, by dense attention without edges. The numbers are the same. Where a
    subclass, an aggregation, a hook or an explainer has a say, messages are always passed, along
    the edges of the complete graphs if need be.

    Args:
        in_channels (int or tuple): Channels of the input, or of sources and targets. :obj:`-1` to
            derive them from the first input.
        out_channels (int, optional): Channels of the output, all heads together.
            (default: :obj:`in_channels` of the targets)
        heads (int): Number of attention heads. (default: :obj:`8`)
        num_classes (int, optional): Number of foreground classes :math:`K`. If given, every node
            has a class. (default: :obj:`None`)
        class_embedding (str, optional): :obj:`"attention"`: classes are a bias on the attention
            logits; :obj:`None`: they do nothing. To add an embedding to the nodes, as the paper
            words it, see :class:`ClassEmbedding`. (default: :obj:`"attention"`)
        dropout (float): Dropout probability of the attention weights. (default: :obj:`0.0`)
        edge_dim (int, optional): Size of edge features, which are projected to one bias per head on
            the attention logits. (default: :obj:`None`)
        bias (bool): Whether the projections have biases. (default: :obj:`True`)
        normalize (str): :obj:`"softmax"` or :obj:`"sinkhorn"`, whose memory grows with the square
            of a group's nodes. (default: :obj:`"softmax"`)
        sinkhorn_rounds (int): The rounds :math:`T` of the second. (default: :obj:`10`)
        **kwargs: Arguments of :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:** nodes :math:`(|\mathcal{V}|, C, *)` with any number of position dimensions, or
          a pair of sources and targets; edges :math:`(2, |\mathcal{E}|)` *or* batch
          :math:`(|\mathcal{V}|)`; edge features :math:`(|\mathcal{E}|, D)` *(optional)*; node
          classes :math:`(|\mathcal{V}|)` in :math:`0, \ldots, K`
        - **output:** nodes :math:`(|\mathcal{V}|, C^{\prime}, *)`, and
          :math:`((2, |\mathcal{E}|), (|\mathcal{E}|, H))` if attention weights are asked for
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int | None = None,
        heads: int = 8,
        num_classes: int | None = None,
        class_embedding: Literal["attention"] | None = "attention",
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        normalize: NormalizeName = "softmax",
        sinkhorn_rounds: int = 10,
        **kwargs: Any,
    ):
        kwargs.setdefault("aggr", "add")
        super().__init__(node_dim=0, **kwargs)
        one = self.aggr_module is not None and not isinstance(kwargs["aggr"], tuple | list)
        expect(one, "aggr", "one aggregation", kwargs["aggr"])
        source, target = (in_channels, in_channels) if isinstance(in_channels, int) else in_channels
        expect(heads > 0, "heads", "a positive number", heads)
        if out_channels is None:
            expect(target > 0, "out_channels", "a number as `in_channels` has none", None)
            out_channels = target
        fits = out_channels > 0 and out_channels % heads == 0
        expect(fits, "out_channels", f"a positive multiple of `heads`={heads}", out_channels)
        known = class_embedding in ("attention", None)  # the paper's form is a ClassEmbedding
        expect(known, "class_embedding", "'attention' or None", repr(class_embedding))
        fits = num_classes is None or num_classes > 0
        expect(fits, "num_classes", "None or a positive number", num_classes)
        expect(0 <= dropout < 1, "dropout", "0 <= dropout < 1", dropout)
        known = normalize in get_args(NormalizeName)
        expect(known, "normalize", "'softmax' or 'sinkhorn'", repr(normalize))
        expect(sinkhorn_rounds > 0, "sinkhorn_rounds", "a positive number", sinkhorn_rounds)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.num_classes = num_classes
        self.class_embedding = class_embedding
        self.dropout = dropout
        self.edge_dim = edge_dim
        self.normalize = normalize
        self.sinkhorn_rounds = sinkhorn_rounds

        self.lin_query = ChannelLinear(target, out_channels, bias=bias)
        self.lin_key = ChannelLinear(source, out_channels, bias=bias)
        self.lin_value = ChannelLinear(source, out_channels, bias=bias)
        self.lin_out = ChannelLinear(out_channels, out_channels, bias=bias)
        self.lin_edge = None if edge_dim is None else Linear(edge_dim, heads, bias=False)
        has_classes = num_classes is not None and class_embedding is not None
        self.class_module = ClassRelation(heads) if has_classes else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        super().reset_parameters()
        for module in self.children():
            if isinstance(module, Linear | ClassRelation):
                module.reset_parameters()

    def forward(
        self,
        x: Tensor | PairTensor,
        edge_index: Adj | None = None,
        edge_attr: OptTensor = None,
        batch: OptTensor = None,
        *,
        batch_size: int | None = None,
        max_num_nodes: int | None = None,
        node_class: OptTensor | PairTensor = None,
        size: tuple[int, int] | None = None,
        return_attention_weights: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        r"""Let nodes attend to their neighbors.

        Args:
            x (torch.Tensor or (torch.Tensor, torch.Tensor)): The nodes.
            edge_index (torch.Tensor or SparseTensor, optional): The edges, sources first.
            edge_attr (torch.Tensor, optional): The edge features.
            batch (torch.Tensor, optional): The sorted group of each node, in place of
                :obj:`edge_index`.
            batch_size (int, optional): The number of groups. Without :obj:`batch`, all groups have
                the same size.
            max_num_nodes (int, optional): The size of the largest group. If it and
                :obj:`batch_size` are given, or :obj:`batch_size` without :obj:`batch`, the host
                never waits for the device.
            node_class (torch.Tensor or (torch.Tensor, torch.Tensor), optional): The class of each
                node, 0 for background; needed if the layer uses classes.
            size ((int, int), optional): The number of sources and of targets, to be checked.
            return_attention_weights (bool): Whether to return the edges and their weights before
                dropout, too. Edges are then made for groups as well. (default: :obj:`False`)

        Raises:
            InputError: If an argument has the wrong rank, size, order or device. Values are not
                looked at, but for the order of :obj:`batch` on the CPU.
        """
        grouped = batch is not None or batch_size is not None
        if grouped == (edge_index is not None):
            raise InputError("`edge_index`, `batch`: expected one of them, got both or neither")
        bipartite = not isinstance(x, Tensor)
        if grouped and (bipartite or edge_attr is not None or self.lin_edge is not None):
            raise InputError("`batch`: expected `edge_index` with bipartite `x` or `edge_attr`")
        x_source, x_target = x if bipartite else (x, x)
        pair = isinstance(node_class, tuple | list)
        c_source, c_target = node_class if pair else (node_class, node_class)
        if self.class_module is None:
            c_source = c_target = None
        elif c_source is None or c_target is None:
            raise InputError("`node_class`: expected integers [V], one class per node, got None")
        checks.nodes("x[0]" if bipartite else "x", x_source, self.lin_key, c_source)
        if bipartite:
            checks.nodes("x[1]", x_target, self.lin_query, c_target)

        H, C = self.heads, self.out_channels
        n_source = _mean(x_source)  # [V, C]
        n_target = _mean(x_target) if bipartite else n_source
        query = self.lin_query(n_target).view(-1, H, C // H)
        key = self.lin_key(n_source).view(-1, H, C // H)
        value = self.lin_value(x_source)  # [V, C', *]
        dropout = self.dropout if self.training else 0.0
        rounds = self.sinkhorn_rounds if self.normalize == "sinkhorn" else 0

        if grouped:
            groups = make_groups(x_source, batch, batch_size, max_num_nodes)
            if not return_attention_weights and is_plain(self, ComplementaryConv):
                classes = (self.class_module, c_target)
                out = group_attention(query, key, value, groups, dropout, *classes, rounds)
                return self.lin_out(out)
            edge_index = groups.edge_index(x_source.device)
        assert edge_index is not None
        checks.edges(edge_index, edge_attr, self.lin_edge, x_source.device)
        sizes = (key.size(0), query.size(0))
        expect(size is None or tuple(size) == sizes, "size", sizes, size)

        positions = x_source.shape[2:]
        D = C // H * positions.numel()  # positions travel together
        value = value.reshape(-1, H, D)
        direction = 1 if self.flow == "source_to_target" else -1
        if is_worthwhile(edge_index, value) and is_plain(self, ComplementaryConv):
            source, target = edge_index.unbind()[::direction]
            ends = (None, None)
            if c_target is not None and c_source is not None:
                ends = (c_target[target], c_source[source])
            bias = self._bias(*ends, edge_attr)
            out, alpha = edge_attention(query, key, value, source, target, bias, dropout, rounds)
        else:
            sizes = sizes[::direction]
            # edge_updater_type: (query: Tensor, key: Tensor, query_class: OptTensor,
            #                     key_class: OptTensor, edge_attr: OptTensor)
            alpha = self.edge_updater(
                edge_index,
                size=sizes,
                query=query,
                key=key,
                query_class=c_target,
                key_class=c_source,
                edge_attr=edge_attr,
            )
            # propagate_type: (value: Tensor, alpha: Tensor)
            out = self.propagate(edge_index, size=sizes, value=value, alpha=alpha)
        out = self.lin_out(out.reshape(-1, C, *positions))
        return (out, (edge_index, alpha)) if return_attention_weights else out

    def edge_update(
        self,
        query_i: Tensor,
        key_j: Tensor,
        query_class_i: OptTensor,
        key_class_j: OptTensor,
        edge_attr: OptTensor,
        index: Tensor,
        ptr: OptTensor,
        size_i: Optional[int],  # noqa: UP045 (PyG reads annotations, and not this form)
        edge_index_j: Tensor,
        size_j: Optional[int],  # noqa: UP045
    ) -> Tensor:
        """Return the weight of each edge and head."""
        logits = (query_i * key_j).sum(dim=-1) * key_j.size(-1) ** -0.5  # [E, H]
        bias = self._bias(query_class_i, key_class_j, edge_attr)
        logits = logits if bias is None else logits + bias
        if self.normalize == "sinkhorn":
            assert size_i is not None and size_j is not None  # given by `forward`
            ends = (index, edge_index_j, (size_i, size_j))
            logits = logits + edge_potential(logits, *ends, self.sinkhorn_rounds)
        return softmax(logits, index, ptr, size_i)

    def message(self, value_j: Tensor, alpha: Tensor) -> Tensor:
        """Return the weighted value of each edge's source, all its positions."""
        alpha = F.dropout(alpha, self.dropout, self.training)
        return value_j * alpha.unsqueeze(-1)

    def _bias(
        self, query_class: OptTensor, key_class: OptTensor, edge_attr: OptTensor
    ) -> OptTensor:
        """What classes and features of edges add to their logits [E, H]."""
        bias = None if self.class_module is None else self.class_module(query_class, key_class)
        if self.lin_edge is None:
            return bias
        if edge_attr is None:  # of a sparse matrix without values
            raise InputError(f"`edge_attr`: expected [E, {self.edge_dim}], got None")
        edge = self.lin_edge(edge_attr if edge_attr.dim() > 1 else edge_attr.unsqueeze(1))
        return edge if bias is None else edge + bias

    def __repr__(self) -> str:
        channels = f"{self.in_channels}, {self.out_channels}"
        more = "" if self.normalize == "softmax" else f", normalize={self.normalize!r}"
        return f"{self.__class__.__name__}({channels}, heads={self.heads}{more})"


def _mean(x: Tensor) -> Tensor:
    """Mean over positions: [V, C, *] -> [V, C]."""
    return x.flatten(2).mean(dim=2) if x.dim() > 2 else x
