"""The weighted edges of P-GNN (Eq. 2 and 3)."""

from typing import Any, Literal, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.typing import Adj, OptTensor, PairTensor
from torch_geometric.utils import is_sparse, softmax

from pgnn_geo.errors import InputError
from pgnn_geo.graph.checks import describe
from pgnn_geo.graph.edges import complete_edge_index
from pgnn_geo.nn.channel_linear import ChannelLinear, is_channels_last
from pgnn_geo.nn.class_embedding import ClassEmbedding, ClassRelation
from pgnn_geo.nn.dense_attention import grouped_attention, make_groups
from pgnn_geo.nn.sparse_attention import edge_attention

HOOKS = ("propagate", "message", "aggregate", "edge_update")


class ComplementaryConv(MessagePassing):
    r"""The complementary operator of `"Maximize the Exploration of Congeneric Semantics for Weakly
    Supervised Semantic Segmentation" <https://arxiv.org/abs/2110.03982>`_ (Eq. 2 and 3) in
    multi-head form: attention over nodes whose features may have positions.

    .. math::
        \mathbf{x}^{\prime}_{\alpha,u} = \mathbf{W}_O \, \big\Vert_{m=1}^{H}
        \sum_{\beta \in \mathcal{N}(\alpha)} E^m_{\alpha\beta} \mathbf{W}^m_V \mathbf{x}_{\beta,u}

    The weights compare the nodes' means over positions :math:`\mathbf{n}_{\alpha}`, with a bias
    :math:`b^m_{\alpha\beta}` of their classes:

    .. math::
        E^m_{\alpha\beta} = \mathrm{softmax}_{\beta} \left( \frac{
        (\mathbf{W}^m_Q \mathbf{n}_{\alpha})^{\top} \mathbf{W}^m_K \mathbf{n}_{\beta}}{\sqrt{d}}
        + b^m_{\alpha\beta} \right)

    On :obj:`edge_index` it passes messages. On :obj:`batch` or :obj:`batch_size` it joins all nodes
    of a group, loops included, by dense attention without edges. Both give the same numbers. Hooks
    and explainers of PyG always see messages, along the edges of the complete graphs if need be.

    Args:
        in_channels (int or tuple): Channels of the input, or of sources and targets. :obj:`-1` to
            derive them from the first input.
        out_channels (int, optional): Channels of the output, all heads together.
            (default: :obj:`in_channels` of the targets)
        heads (int): Number of attention heads. (default: :obj:`8`)
        num_classes (int, optional): Number of foreground classes :math:`K` of nodes that have one.
            (default: :obj:`None`)
        class_embedding (str, optional): What the classes do. With :obj:`"attention"` they are a
            :class:`ClassRelation` on the weights, and cannot be told
            from the output. With :obj:`"input"` a :class:`ClassEmbedding` is added to the nodes, as
            the paper words it: where classes come from image tags, a classifier can read them off
            such nodes. :obj:`None` for nothing. (default: :obj:`"attention"`)
        concat (bool): Whether heads share the output channels, or are averaged at full width each.
            (default: :obj:`True`)
        beta (bool): Whether to mix in the target by a gate, as
            :class:`~torch_geometric.nn.conv.TransformerConv` does: :math:`\beta \mathbf{W}_S
            \mathbf{x} + (1 - \beta) \mathbf{x}^{\prime}`. (default: :obj:`False`)
        dropout (float): Dropout probability of the attention weights. (default: :obj:`0.0`)
        edge_dim (int, optional): Size of edge features, which are projected to one bias per head on
            the attention logits. (default: :obj:`None`)
        bias (bool): Whether the projections have biases. (default: :obj:`True`)
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
        class_embedding: Literal["attention", "input"] | None = "attention",
        concat: bool = True,
        beta: bool = False,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        **kwargs: Any,
    ):
        kwargs.setdefault("aggr", "add")
        super().__init__(node_dim=0, **kwargs)
        source, target = (in_channels, in_channels) if isinstance(in_channels, int) else in_channels
        out_channels = target if out_channels is None else out_channels
        if heads < 1 or out_channels < 1 or (concat and out_channels % heads):
            raise InputError(
                "`out_channels`: expected a positive multiple of "
                f"`heads`={heads if concat else 1}, got {out_channels}"
            )
        if class_embedding not in ("attention", "input", None):
            raise InputError(
                f"`class_embedding`: expected 'attention', 'input' or None, got {class_embedding!r}"
            )
        if not 0 <= dropout < 1:
            raise InputError(f"`dropout`: expected 0 <= dropout < 1, got {dropout}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.head_channels = out_channels // heads if concat else out_channels
        self._scale = self.head_channels**-0.5
        self.num_classes = num_classes
        self.class_embedding = class_embedding
        self.concat = concat
        self.beta = beta
        self.dropout = dropout
        self.edge_dim = edge_dim

        hidden = heads * self.head_channels
        self.lin_query = ChannelLinear(target, hidden, bias=bias)
        self.lin_key = ChannelLinear(source, hidden, bias=bias)
        self.lin_value = ChannelLinear(source, hidden, bias=bias)
        self.lin_out = ChannelLinear(out_channels, out_channels, bias=bias)
        self.lin_edge = None if edge_dim is None else Linear(edge_dim, heads, bias=False)
        self.lin_skip = ChannelLinear(target, out_channels, bias=bias) if beta else None
        self.lin_beta = ChannelLinear(3 * out_channels, 1, bias=False) if beta else None
        self.class_module: ClassEmbedding | ClassRelation | None = None
        if num_classes is not None and class_embedding == "attention":
            self.class_module = ClassRelation(num_classes, heads)
        elif num_classes is not None and class_embedding == "input":
            if source != target or source < 1:
                raise InputError(
                    "`num_classes`: expected None unless sources and targets have the same, known "
                    f"number of channels, got {num_classes} with in_channels={in_channels}"
                )
            self.class_module = ClassEmbedding(num_classes, source)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        super().reset_parameters()
        for module in self.children():
            if isinstance(module, Linear | ClassEmbedding | ClassRelation):
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
        return_attention_weights: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        r"""Let nodes attend to their neighbors.

        Args:
            x (torch.Tensor or (torch.Tensor, torch.Tensor)): The nodes.
            edge_index (torch.Tensor or SparseTensor, optional): The edges, sources first.
                (default: :obj:`None`)
            edge_attr (torch.Tensor, optional): The edge features. (default: :obj:`None`)
            batch (torch.Tensor, optional): The sorted group of each node, in place of
                :obj:`edge_index`. (default: :obj:`None`)
            batch_size (int, optional): The number of groups. Without :obj:`batch`, all groups have
                the same size. (default: :obj:`None`)
            max_num_nodes (int, optional): The size of the largest group. If it and
                :obj:`batch_size` are given, or :obj:`batch_size` without :obj:`batch`, the host
                never waits for the device. (default: :obj:`None`)
            node_class (torch.Tensor or (torch.Tensor, torch.Tensor), optional): The class of each
                node, 0 for background; needed if the layer uses classes. (default: :obj:`None`)
            return_attention_weights (bool): Whether to return the edges and their weights before
                dropout, too. (default: :obj:`False`)

        Raises:
            InputError: If an argument has the wrong rank, size, order, range or device, or
                :obj:`x` holds NaN (looked for on the CPU only).
        """
        fused = batch is not None or batch_size is not None
        if fused == (edge_index is not None):
            raise InputError("`edge_index`, `batch`: expected one of them, got both or neither")
        bipartite = not isinstance(x, Tensor)
        x_source, x_target = (x, x) if isinstance(x, Tensor) else x
        if fused and (bipartite or self.edge_dim is not None or edge_attr is not None):
            raise InputError("`batch`: expected `edge_index` with bipartite `x` or `edge_attr`")
        classes = node_class if isinstance(node_class, tuple | list) else (node_class,) * 2
        source, n_source = self._nodes("x", x_source, self.lin_key, classes[0])
        target, n_target = source, n_source
        if bipartite:
            target, n_target = self._nodes("x[1]", x_target, self.lin_query, classes[1])
        if edge_index is not None:
            self._check_edges(edge_index, edge_attr, source, target)

        P, H, D = source.size(2), self.heads, self.head_channels
        query = self.lin_query(n_target).view(-1, H, D)
        key = self.lin_key(n_source).view(-1, H, D)
        if isinstance(self.class_module, ClassRelation):
            relation = self.class_module.query(classes[1]) / self._scale
            query = torch.cat([query, relation.to(query.dtype)], dim=-1)  # [V, H, D + K + 1]
            key = torch.cat([key, self.class_module.key(classes[0]).to(key.dtype)], dim=-1)
        value = self.lin_value(source)  # [V, H * D, P]
        # Positions go before or behind the channels of a head, as they stand in memory.
        last = is_channels_last(value)
        value = value.mT.unflatten(2, (H, D)) if last else value.view(-1, 1, H, D * P)

        alpha: OptTensor
        if fused:
            groups = make_groups(source, batch, batch_size, max_num_nodes)
            if return_attention_weights or self._is_observed():
                edge_index = complete_edge_index(groups.ptr, device=source.device)
        if fused and not self._is_observed():
            dropout = self.dropout if self.training else 0.0
            out, alpha = grouped_attention(
                query, key, value, groups, self._scale, dropout, edge_index
            )
        else:
            around = value.shape[1:4:2]
            value = value.transpose(1, 2).flatten(2)  # [V, H, P * D]: positions travel together
            out, alpha = self._pass_messages(query, key, value, edge_index, edge_attr)
            out = out.unflatten(2, around).transpose(1, 2)

        out = out.flatten(2) if self.concat else out.mean(dim=2)
        out = out.mT if last else out.reshape(-1, self.out_channels, P)  # [V, C', P]
        out = self.lin_out(out)
        if self.lin_skip is not None and self.lin_beta is not None:
            skip = self.lin_skip(target)
            gate = self.lin_beta(torch.cat([out, skip, out - skip], dim=1)).sigmoid()
            out = gate * skip + (1 - gate) * out
        out = out.unflatten(2, x_source.shape[2:]) if x_source.dim() > 2 else out.squeeze(2)
        if not return_attention_weights:
            return out
        assert edge_index is not None and alpha is not None
        return out, (edge_index, alpha)

    def _pass_messages(
        self, query: Tensor, key: Tensor, value: Tensor, edge_index: Any, edge_attr: OptTensor
    ) -> tuple[Tensor, Tensor]:
        if self._is_observed() or not query.is_cpu or is_sparse(edge_index) or is_compiling():
            # edge_updater_type: (query: Tensor, key: Tensor, edge_attr: OptTensor)
            alpha = self.edge_updater(edge_index, query=query, key=key, edge_attr=edge_attr)
            # propagate_type: (value: Tensor, alpha: Tensor)
            size = (key.size(0), query.size(0))
            return self.propagate(edge_index, value=value, alpha=alpha, size=size), alpha
        edge_index = edge_index if self.flow == "source_to_target" else edge_index.flip(0)
        bias = None if self.lin_edge is None else self.lin_edge(edge_attr)
        dropout = self.dropout if self.training else 0.0
        return edge_attention(query, key, value, edge_index, self._scale, bias, dropout)

    def edge_update(
        self,
        query_i: Tensor,
        key_j: Tensor,
        edge_attr: OptTensor,
        index: Tensor,
        ptr: OptTensor,
        size_i: Optional[int],  # noqa: UP045 (PyG reads annotations, and not this form)
    ) -> Tensor:
        """Return the weight of each edge and head."""
        logits = (query_i * key_j).sum(dim=-1) * self._scale  # [E, H]
        if self.lin_edge is not None:
            if edge_attr is None:  # of a sparse matrix without values
                raise InputError(f"`edge_attr`: expected [E, {self.edge_dim}], got None")
            logits = logits + self.lin_edge(edge_attr)
        return softmax(logits, index, ptr, size_i)

    def message(self, value_j: Tensor, alpha: Tensor) -> Tensor:
        """Return the weighted value of each edge's source."""
        alpha = F.dropout(alpha, self.dropout, self.training)
        return value_j * alpha.unsqueeze(-1)

    def _nodes(
        self, name: str, x: Tensor, lin: Linear, node_class: OptTensor
    ) -> tuple[Tensor, Tensor]:
        """Check nodes; return them [V, C, P], and what queries and keys are made of [V, C]."""
        channels = lin.in_channels if lin.in_channels > 0 else "C"
        if not isinstance(x, Tensor) or x.dim() < 2 or channels not in ("C", x.size(1)):
            raise InputError(f"`{name}`: expected [V, {channels}, *], got {describe(x)}")
        if x.device != self.lin_out.weight.device or not x.is_floating_point() or 0 in x.shape[1:]:
            raise InputError(
                f"`{name}`: expected floating-point features on {self.lin_out.weight.device} with "
                f"at least one channel and position, got {describe(x)}"
            )
        x = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
        if self.class_module is not None and (
            not isinstance(node_class, Tensor)
            or node_class.shape != x.shape[:1]
            or node_class.device != x.device
        ):
            raise InputError(
                f"`node_class`: expected integers [{x.size(0)}] on {x.device}, one class per node, "
                f"got {describe(node_class)}"
            )
        if isinstance(self.class_module, ClassEmbedding):
            x = x + self.class_module(node_class).unsqueeze(2)
        node = x.mean(dim=2) if x.size(2) > 1 else x.squeeze(2)
        # One NaN spreads over its group. Elsewhere than on the CPU, looking would be waiting.
        if node.is_cpu and not is_compiling() and node.sum().isnan():
            raise InputError(f"`{name}`: expected numbers, got NaN among them")
        return x, node

    def _check_edges(
        self, edge_index: Adj, edge_attr: OptTensor, source: Tensor, target: Tensor
    ) -> None:
        if is_sparse(edge_index):  # checked by PyG; may carry the edge features itself
            return
        if (
            not isinstance(edge_index, Tensor)
            or edge_index.dim() != 2
            or edge_index.size(0) != 2
            or edge_index.dtype != torch.long
            or edge_index.device != source.device
        ):
            raise InputError(
                f"`edge_index`: expected int64 [2, E] on {source.device}, "
                f"got {describe(edge_index)}"
            )
        E = edge_index.size(1)
        if (edge_attr is None) != (self.edge_dim is None) or (
            edge_attr is not None and edge_attr.shape != (E, self.edge_dim)
        ):
            expected = None if self.edge_dim is None else f"[{E}, {self.edge_dim}]"
            raise InputError(f"`edge_attr`: expected {expected}, got {describe(edge_attr)}")
        if E and edge_index.is_cpu and not is_compiling():
            sizes = [source.size(0), target.size(0)]
            sizes = sizes if self.flow == "source_to_target" else sizes[::-1]
            for row, size in zip(edge_index, sizes, strict=True):
                low, high = (int(v) for v in row.aminmax())
                if low < 0 or high >= size:
                    raise InputError(
                        f"`edge_index`: expected nodes 0 to {size - 1}, got {low} to {high}"
                    )

    def _is_observed(self) -> bool:
        hooks = (f"_{name}_forward_{when}" for name in HOOKS for when in ("pre_hooks", "hooks"))
        return bool(self.explain) or any(getattr(self, name) for name in hooks)

    def __repr__(self) -> str:
        channels = f"{self.in_channels}, {self.out_channels}"
        return f"{self.__class__.__name__}({channels}, heads={self.heads})"
