"""Congeneric propagation: class evidence that travels along the similarity of features."""

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import Adj, OptTensor, PairTensor
from torch_geometric.utils import scatter

from pgnn_geo.errors import InputError
from pgnn_geo.nn.fusion import is_plain
from pgnn_geo.nn.kernels import KERNELS, Weigh, rectified


def centered(features: Tensor, mean: Tensor | None, dim: int = -1) -> tuple[Tensor, Tensor]:
    r"""Center features on the data set's mean; return them and their lengths.

    .. math::
        \mathbf{f} - \boldsymbol{\mu}, \qquad \lVert \mathbf{f} - \boldsymbol{\mu} \rVert

    Half-precision features are raised to float32. The length of a zero vector is infinite, so that
    it stays zero when it is divided, with a zero gradient.

    Args:
        features (torch.Tensor): The features, channels along :obj:`dim`.
        mean (torch.Tensor or None): The mean feature :math:`\boldsymbol{\mu}` of shape :math:`(C)`.
        dim (int): The channel dimension. (default: :obj:`-1`)

    Raises:
        InputError: If :obj:`mean` has another number of channels than :obj:`features`.
    """
    x = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    if mean is not None:
        if mean.numel() != x.size(dim):
            raise InputError(
                f"mean has {mean.numel()} channels, the features have {x.size(dim)}: "
                "both must come from the same layer of the same network"
            )
        shape = [1] * x.dim()
        shape[dim] = -1
        x = x - mean.to(x).view(shape)
    # Several times as fast as x.norm across channels that do not stand together in memory.
    square = x.square().sum(dim=dim, keepdim=True)
    # Division by infinity: unlike a clamp, it has no gradient of 1 / eps at a zero vector.
    return x, square.masked_fill(square <= 1e-24, float("inf")).sqrt()


def centered_unit(features: Tensor, mean: Tensor | None, dim: int = -1) -> Tensor:
    r"""Center features on the data set's mean and scale each to unit length.

    .. math::
        \mathbf{u} = (\mathbf{f} - \boldsymbol{\mu}) / \lVert \mathbf{f} - \boldsymbol{\mu} \rVert

    See :func:`centered`.
    """
    x, length = centered(features, mean, dim)
    return x / length


class CongenericPropagation(MessagePassing):
    r"""Message passing of class scores along the similarity of features.

    The weighted edges are those of Eq. 3 of `"Maximize the Exploration of Congeneric Semantics for
    Weakly Supervised Semantic Segmentation" <https://arxiv.org/abs/2110.03982>`_; they carry class
    scores instead of features.

    .. math::
        \mathbf{s}^{\prime}_{\alpha} = \sum_{\beta \in \mathcal{N}(\alpha)} E_{\alpha\beta} \,
        \mathbf{s}_{\beta}

    With :obj:`kernel="cosine"` the weights are rectified and sum to one over the sources,

    .. math::
        E_{\alpha\beta} = \frac{\mathrm{ReLU}(\cos(\mathbf{f}_{\alpha} - \boldsymbol{\mu},
        \mathbf{f}_{\beta} - \boldsymbol{\mu}))^p}{\sum_{\gamma \in \mathcal{N}(\alpha)}
        \mathrm{ReLU}(\cos(\mathbf{f}_{\alpha} - \boldsymbol{\mu},
        \mathbf{f}_{\gamma} - \boldsymbol{\mu}))^p}.

    With :obj:`kernel="softmax"`, :math:`e^{p \cos}` takes the place of
    :math:`\mathrm{ReLU}(\cos)^p`: attention with inverse temperature :math:`p`.

    With :obj:`kernel="linear"` they are the bare cosine, :math:`E_{\alpha\beta} = \langle
    \mathbf{u}_{\alpha}, \mathbf{u}_{\beta} \rangle`, so the sum factorizes into :math:`\langle
    \mathbf{u}_{\alpha}, \sum_{\beta} \mathbf{u}_{\beta} \mathbf{s}_{\beta} \rangle`: linear in the
    number of nodes, neither normalized nor bounded, and of either sign.

    :obj:`edge_index` selects message passing on any graph. :obj:`batch` selects the complete graph
    within each group (self-loops included), fused: similarities are made in blocks of at most
    :obj:`max_elements`, of which one is alive in the forward pass and three in the backward pass,
    which makes them anew. At the default that is 16 and 48 MiB in float32, whatever the number of
    nodes, beside a few copies of the features. Under autocast the blocks are made in the lower
    precision and summed in float32.

    Args:
        kernel (str): :obj:`"cosine"`, :obj:`"softmax"`, :obj:`"linear"`, or one of your own in
            :obj:`~pgnn_geo.nn.kernels.KERNELS`, which takes the place of
            :math:`\mathrm{ReLU}(\cos)^p`. (default: :obj:`"cosine"`)
        mean (torch.Tensor, optional): The data set's mean feature :math:`\boldsymbol{\mu}` of shape
            :math:`(C)`, kept as a buffer, for example :attr:`ClassPrototypes.mean`. Features are
            not centered without it, which separates classes less well. (default: :obj:`None`)
        power (float): The exponent :math:`p` of the kernel, 1 or more, and 1 with the linear one.
            (default: :obj:`1.0`)
        max_elements (int): The most similarities in one block of the fused cosine kernel.
            (default: :obj:`4194304`)
        **kwargs: Arguments of :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **scores:** :math:`(|\mathcal{V}|, K)`
        - **features:** :math:`(|\mathcal{V}|, C)`
        - **edge_index:** :math:`(2, |\mathcal{E}|)` or **batch:** :math:`(|\mathcal{V}|)`, sorted
        - **node_tags:** :math:`(|\mathcal{V}|, K)` of zeros and ones *(optional)*
        - **output:** :math:`(|\mathcal{V}|, K)`

        If bipartite, :obj:`features`, :obj:`batch` and :obj:`node_tags` are pairs (sources,
        targets), :obj:`scores` belong to the sources and the output to the targets.
    """

    def __init__(
        self,
        kernel: str = "cosine",
        mean: Tensor | None = None,
        power: float = 1.0,
        max_elements: int = 2**22,
        **kwargs: Any,
    ) -> None:
        chosen = KERNELS[kernel]
        if power < 1 or (chosen.weigh is None and power != 1):
            raise InputError(f"power={power}: want 1 or more, and 1 with the linear kernel")
        if max_elements < 1:
            raise InputError(f"max_elements={max_elements}: want 1 or more")
        kwargs.setdefault("aggr", "add")
        super().__init__(node_dim=0, **kwargs)
        self.kernel = kernel
        self._weigh = chosen.weigh
        self.power = power
        self.max_elements = max_elements
        self.mean: Tensor | None
        self.register_buffer("mean", None if mean is None else mean.detach().clone())

    def forward(
        self,
        scores: Tensor,
        features: Tensor | PairTensor,
        edge_index: Adj | None = None,
        *,
        batch: Tensor | PairTensor | None = None,
        node_tags: Tensor | PairTensor | None = None,
    ) -> Tensor:
        r"""Propagate the class scores.

        Args:
            scores (torch.Tensor): The class scores of the source nodes.
            features (torch.Tensor or (torch.Tensor, torch.Tensor)): The features to compare.
            edge_index (torch.Tensor or SparseTensor, optional): The edges, sources first.
                (default: :obj:`None`)
            batch (torch.Tensor or (torch.Tensor, torch.Tensor), optional): The sorted group of each
                node, instead of :obj:`edge_index`. (default: :obj:`None`)
            node_tags (torch.Tensor or (torch.Tensor, torch.Tensor), optional): The image tags of
                each node. Class :math:`c` then travels only between nodes tagged :math:`c`: other
                sources leave its sum and its normalization, other targets get zero.
                (default: :obj:`None`)

        Raises:
            InputError: If sizes disagree, :obj:`batch` is unsorted, not exactly one of
                :obj:`edge_index` and :obj:`batch` is given, or hooks or a subclass's methods are to
                see the fused path.
        """
        if (edge_index is None) == (batch is None):
            raise InputError("give exactly one of edge_index and batch")
        source, target = _pair(features)
        tags, target_tags = (None, None) if node_tags is None else _pair(node_tags)
        _check_rows("scores", scores, source.size(0))
        _check_rows("node_tags of the sources", tags, source.size(0))
        _check_rows("node_tags of the targets", target_tags, target.size(0))

        unit = centered_unit(source, self.mean)
        target_unit = unit if target is source else centered_unit(target, self.mean)
        values = scores.to(unit.dtype)
        tags = None if tags is None else tags.to(unit.dtype)

        if edge_index is not None:
            size = (source.size(0), target.size(0))
            alpha = self.edge_updater(
                edge_index, unit=(unit, target_unit), tags=(tags, None), size=size
            )
            out = self.propagate(edge_index, scores=(values, None), alpha=alpha, size=size)
        else:
            assert batch is not None
            if not is_plain(self, CongenericPropagation):
                raise InputError(
                    "hooks, explanations and methods of a subclass see edges only: call with "
                    "edge_index=complete_edge_index(ptr) instead of batch"
                )
            groups = _pair(batch)
            _check_rows("batch of the sources", groups[0], source.size(0))
            _check_rows("batch of the targets", groups[1], target.size(0))
            out = self._fused(values, unit, target_unit, tags, groups)

        if target_tags is not None:
            out = out * target_tags.to(out.dtype)
        return out.to(scores.dtype)

    def edge_update(
        self,
        unit_i: Tensor,
        unit_j: Tensor,
        tags_j: OptTensor,
        index: Tensor,
        size_i: int,
    ) -> Tensor:
        """Compute the weight of each edge: one, or with tags one per class."""
        weight = (unit_i * unit_j).sum(dim=-1, keepdim=True)  # [E, 1]
        if self._weigh is not None:
            weight = self._weigh(weight, self.power)
        if tags_j is not None:
            weight = weight * tags_j  # [E, K]
        if self._weigh is not None:
            total = scatter(weight, index, dim=0, dim_size=size_i, reduce="sum")
            weight = normalized(weight, total[index])
        return weight

    def message(self, scores_j: Tensor, alpha: Tensor) -> Tensor:
        """Weigh the scores of the sources."""
        return alpha * scores_j

    def _fused(
        self,
        scores: Tensor,
        source: Tensor,
        target: Tensor,
        tags: Tensor | None,
        batch: PairTensor,
    ) -> Tensor:
        ones = scores.new_ones(scores.size(0), 1)
        values = scores if tags is None else scores * tags
        if self._weigh is not None:  # the sum and its normalization come out of one product
            values = torch.cat([values, ones if tags is None else tags], dim=-1)
        sizes = _group_sizes(batch)
        parts = [
            self._linear(t, s, v)
            if self._weigh is None
            else cosine_sums(t, s, v, self.power, self.max_elements, self._weigh)
            for s, v, t in zip(
                source.split(sizes[0]), values.split(sizes[0]), target.split(sizes[1]), strict=True
            )
        ]
        out = torch.cat(parts) if parts else values.new_zeros(0, values.size(1))
        if self._weigh is not None:
            out = normalized(out[:, : scores.size(1)], out[:, scores.size(1) :])
        return out

    @staticmethod
    def _linear(target: Tensor, source: Tensor, values: Tensor) -> Tensor:
        return (target @ (source.t() @ values)).to(values.dtype)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}(kernel={self.kernel!r}, centered={self.mean is not None})"
        )


def cosine_sums(
    target: Tensor,
    source: Tensor,
    values: Tensor,
    power: float = 1.0,
    max_elements: int = 2**22,
    weigh: Weigh = rectified,
) -> Tensor:
    r"""Sum the values of all sources for each target, weighted by similarity.

    .. math::
        \sum_{\beta} \mathrm{ReLU}(\langle \mathbf{u}_{\alpha}, \mathbf{u}_{\beta} \rangle)^p
        \, \mathbf{v}_{\beta}

    A column of ones in the values gives what :func:`normalized` divides by. Sums over parts of the
    sources add up to those over all.

    Args:
        target (torch.Tensor): Unit features :math:`(\ldots, T, C)`, see :func:`centered_unit`.
        source (torch.Tensor): Unit features :math:`(\ldots, S, C)`.
        values (torch.Tensor): Values :math:`(\ldots, S, K)` of the sources.
        power (float): The exponent :math:`p`. (default: :obj:`1.0`)
        max_elements (int): The most similarities in one block. (default: :obj:`4194304`)
        weigh (callable): See :class:`~pgnn_geo.nn.kernels.Kernel`; by default the rectified power
            above.
    """
    if torch.compiler.is_exporting():  # sizes are not known yet, so there is one block
        return _cosine_block(target, source, values, power, weigh)
    # Blocks near the square: each row and column of a block is read from memory once.
    rows = min(max(target.size(-2), 1), isqrt(max_elements))
    columns = max_elements // rows
    needs_grad = torch.is_grad_enabled() and (
        target.requires_grad or source.requires_grad or values.requires_grad
    )
    sources = list(zip(source.split(columns, -2), values.split(columns, -2), strict=True))
    parts = []
    for t in target.split(rows, -2):
        out = values.new_zeros(*t.shape[:-1], values.size(-1))
        for s, v in sources:
            if needs_grad:
                part = checkpoint(
                    _cosine_block,
                    t,
                    s,
                    v,
                    power,
                    weigh,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                part = _cosine_block(t, s, v, power, weigh)
            out = out + part
        parts.append(out)
    return torch.cat(parts, dim=-2)


def propagated_maps(maps: Tensor, features: Tensor, power: float = 1.0) -> Tensor:
    r"""Take class maps along the similarity of the positions of each photo.

    :class:`CongenericPropagation` with the cosine kernel, on the complete graphs whose nodes are
    the positions of one photo each; as all photos have as many, they go through in one product.

    Args:
        maps (torch.Tensor): Class maps :math:`(B, K, h, w)`.
        features (torch.Tensor): Features of the same positions :math:`(B, C, h, w)`.
        power (float): The exponent :math:`p` of the kernel. (default: :obj:`1.0`)

    Returns:
        Class maps :math:`(B, K, h, w)`; where they sum to one at every position, so do these. A
        position whose features are zero keeps its own.
    """
    unit = centered_unit(features.flatten(2).mT, None)
    values = maps.flatten(2).mT.to(unit.dtype)
    total = cosine_sums(unit, unit, F.pad(values, (0, 1), value=1.0), power)
    weight = total[..., -1:]
    out = torch.where(weight == 0, values, normalized(total[..., :-1], weight))
    return out.mT.reshape(maps.shape).to(maps.dtype)


def _cosine_block(
    target: Tensor, source: Tensor, values: Tensor, power: float, weigh: Weigh
) -> Tensor:
    return weigh(target @ source.mT, power) @ values


def normalized(total: Tensor, weight: Tensor) -> Tensor:
    """Divide sums by their weights, zero where no source is similar."""
    return total / weight.masked_fill(weight == 0, 1.0)


def _pair(value: Tensor | PairTensor) -> PairTensor:
    return (value, value) if isinstance(value, Tensor) else value


def _check_rows(name: str, value: Tensor | None, rows: int) -> None:
    if value is not None and value.size(0) != rows:
        raise InputError(f"{name}: got {value.size(0)} rows, want {rows}, one for each node")


def _group_sizes(batch: PairTensor) -> tuple[list[int], list[int]]:
    for side in batch:
        if bool((side.diff() < 0).any()):
            raise InputError("batch must be sorted: the nodes of a group stand together")
    groups = max((int(side[-1]) + 1 if side.numel() else 0) for side in batch)
    source, target = (torch.bincount(side, minlength=groups).tolist() for side in batch)
    return source, target
