r"""Where the class evidence of a position came from, along the edges that lead to it."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch_geometric.explain import AttentionExplainer, Explainer
from torch_geometric.nn import MessagePassing

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features import View, photo_batches
from pgnn_geo.labels.labeller import Labeller
from pgnn_geo.labels.maps import MapConfig, attention_maps
from pgnn_geo.labels.propagation import Propagated, photo_graphs
from pgnn_geo.nn import PGNN, ComplementaryBlock, CongenericPropagation
from pgnn_geo.nn.kernels import KERNELS
from pgnn_geo.nn.propagation import centered_unit, normalized

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PositionExplanation:
    r"""The edges that lead to one node, and what they carried.

    Nodes are numbered photo by photo, row by row; the first photo is the one that was asked about.

    Args:
        class_name (str): The class.
        image_ids (sequence of str): The photo and its partners.
        node (int): The node that was asked about.
        weight (torch.Tensor): Weight :math:`E_{\alpha\beta}` of the edge from every node. Of
            propagation, those from the photo itself add up to one, and those from the partners.
        heat (torch.Tensor): What each edge carried: weight times evidence of its source, or of
            attention, which carries features, the weight alone.
        evidence (float): Of the node itself: its class score after the step of propagation, before
            maps are divided by their maximum. Of attention, the score map's value.
        prototypes (dict, optional): Similarity of the node to the prototype of every class, if
            there are any. (default: :obj:`None`)
        photos (sequence of torch.Tensor): The photos themselves, :obj:`[3, H, W]`, uint8.

    Shapes:
        - **weight, heat:** :math:`(1 + P, S, S)` for :math:`P` partners and :math:`S` nodes per
          side of a photo
    """

    class_name: str
    image_ids: Sequence[str]
    node: int
    weight: Tensor
    heat: Tensor
    evidence: float
    prototypes: dict[str, float] | None
    photos: Sequence[Tensor]

    @property
    def position(self) -> tuple[int, int]:
        """Row and column of the node in its photo."""
        return divmod(self.node, self.heat.size(-1))

    def strongest(self, count: int = 5) -> tuple[Tensor, Tensor]:
        """Return the edges that carried most to the node, loops left out.

        Args:
            count (int): The most edges that are returned. (default: :obj:`5`)

        Returns:
            Edges :math:`(2, E)`, sources first, and what they carried :math:`(E)`.
        """
        carried = self.heat.flatten().clone()
        carried[self.node] = 0
        value, source = carried.topk(min(count, int((carried > 0).sum())))
        return torch.stack([source, torch.full_like(source, self.node)]), value

    def figure(self, lines: int = 5) -> "Figure":
        """Draw the heat over the photo and its partners, and the strongest edges.

        Args:
            lines (int): Edges that are drawn. (default: :obj:`5`)
        """
        from pgnn_geo.inference.explanation_figure import (
            explanation_figure,
        )  # matplotlib is an extra

        return explanation_figure(self, lines)


def explain_position(
    model: Labeller | PGNN,
    dataset: TaggedDataset,
    photo: str | int,
    position: tuple[float, float],
    class_name: str | None = None,
    partners: Sequence[str | int] | int = 3,
    maps: MapConfig | None = None,
) -> PositionExplanation:
    r"""Explain the evidence for a class at a position of a photo.

    The edges' weights are what :class:`torch_geometric.explain.AttentionExplainer` sees in the
    layer as it passes messages to the position:

    - of a :class:`~pgnn_geo.labels.labeller.Labeller`, and of a network without a graph, those of
      :class:`~pgnn_geo.nn.CongenericPropagation`. The edges from the photo itself are the ones
      that made its map. Those from the partners are the layer's between photos: a prototype is
      the sum over all photos of what they join, so they show which parts of the partners speak for
      this position.
    - of a :class:`~pgnn_geo.nn.PGNN` with a graph of grid cells, those of its first
      :class:`~pgnn_geo.nn.ComplementaryConv`, mean over the heads, in the group of the photo and
      its partners.

    Args:
        model (Labeller or PGNN): What made the maps.
        dataset (TaggedDataset): Photos with tags.
        photo (str or int): Name or index of the photo.
        position (tuple of float): :math:`(x, y)` in pixels of the photo.
        class_name (str, optional): The class; the first tag of the photo if not given.
        partners (sequence, or int): Names or indices of the other photos, or how many: the next
            ones of the data set that have the class. (default: :obj:`3`)
        maps (MapConfig, optional): Of a PGNN: how its maps are inferred; default values if not
            given.

    Raises:
        InputError: If there is no such photo, position or class, the photo does not have the class,
            or the model's nodes are boxes.
    """
    members, label = _members(dataset, photo, class_name, partners)
    height, width = dataset.photo_size(members[0])
    x, y = position
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(f"position={position}: want (x, y) within {width} x {height} pixels")

    def node(side: int) -> int:
        return int(y * side / height) * side + int(x * side / width)

    chosen = dataset.subset(members)
    prototypes = None
    if isinstance(model, Labeller):
        with tempfile.TemporaryDirectory() as folder:
            bank = model.bank(chosen, Path(folder))
            source = model.model.before_propagation(bank, _tags(chosen), model.backbone.device)
            nodes = evidence_nodes(source, range(len(chosen)), label)
        prototypes = model.model.prototypes
        found = _propagated(source.layer, *nodes, node)
    elif len(model.blocks):
        found = _attended(model, chosen, label, maps or MapConfig(), node)
    else:
        steps: list[tuple[CongenericPropagation, Tensor, Tensor]] = []  # one for each scale

        def observe(seen: Propagated) -> None:
            steps.append((seen.layer, *evidence_nodes(seen, members, label)))

        attention_maps(model, dataset, maps, observe=observe)
        if not steps:
            raise InputError("The maps are not propagated: no edges lead to a position.")
        found = _propagated(*steps[0], node)
    at, weight, heat, evidence, feature = found
    scores = None
    if prototypes is not None:
        values = prototypes.score(feature[None])[0].tolist()
        scores = dict(zip(dataset.classes, values, strict=True))
    photos = [torch.as_tensor(dataset.with_transform(None)[i]["image"]) for i in members]
    names = tuple(chosen.image_ids)
    return PositionExplanation(
        dataset.classes[label], names, at, weight, heat, evidence, scores, photos
    )


def evidence_nodes(source: Propagated, photos: Sequence[int], label: int) -> tuple[Tensor, Tensor]:
    """Return features :obj:`[n, V, C]` and evidence for a class :obj:`[n, V]` of photos' nodes."""
    index = torch.as_tensor(photos)
    x, evidence = [], []
    features, tags = source.features[index], source.start.tags[index]
    for graphs in photo_graphs(features, tags, source.grid, source.device):
        values = graphs.nodes(source.start.dense(index[graphs.photos]))[:, label]
        x.append(graphs.x.unflatten(0, (len(graphs.photos), -1)))
        evidence.append(values.unflatten(0, (len(graphs.photos), -1)))
    return torch.cat(x), torch.cat(evidence)


def edge_weights(layer: CongenericPropagation, target: Tensor, source: Tensor) -> Tensor:
    """Return the weights of the edges from every source to every target, :obj:`[T, S]`.

    The weights of :meth:`CongenericPropagation.edge_update
    <pgnn_geo.nn.CongenericPropagation.edge_update>`, of all edges by one product.

    Args:
        layer (CongenericPropagation): The layer.
        target (torch.Tensor): Features of the targets :obj:`[T, C]`.
        source (torch.Tensor): Features of the sources :obj:`[S, C]`.
    """
    cosine = centered_unit(target, layer.mean) @ centered_unit(source, layer.mean).t()
    weigh = KERNELS[layer.kernel].weigh
    if weigh is None:
        return cosine
    weight = weigh(cosine, layer.power)
    return normalized(weight, weight.sum(dim=1, keepdim=True))


def incoming_weights(
    layer: MessagePassing,
    x: Tensor,
    sources: Tensor,
    target: int,
    call: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the weight of the edge from each source to a node, by PyG's explainer.

    Args:
        layer (MessagePassing): The layer whose attention is read.
        x (torch.Tensor): The nodes.
        sources (torch.Tensor): Sources of the edges :obj:`[E]`.
        target (int): Their target.
        call (callable): Calls the layer on nodes and edges.
    """
    explainer = Explainer(
        _Explained(layer, call),
        AttentionExplainer(reduce="mean"),
        explanation_type="model",
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "graph", "return_type": "raw"},
    )
    weight: Tensor = explainer(
        x, torch.stack([sources, torch.full_like(sources, target)])
    ).edge_mask
    return weight


class _Explained(torch.nn.Module):
    """A layer in the form that explainers call: one number per graph."""

    def __init__(self, layer: MessagePassing, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.call(x, edge_index).mean().view(1, 1)


_Found = tuple[int, Tensor, Tensor, float, Tensor]


@torch.no_grad()
def _propagated(
    layer: CongenericPropagation, x: Tensor, evidence: Tensor, node: Callable[[int], int]
) -> _Found:
    """Node, weights, heat, evidence and feature of a step of propagation."""
    count, nodes = evidence.shape
    side = round(nodes**0.5)
    at = node(side)

    def call(x: Tensor, edge_index: Tensor) -> Tensor:
        return layer(x.new_zeros(len(x), 1), x, edge_index)

    own = incoming_weights(layer, x[0], torch.arange(nodes, device=x.device), at, call)
    weights = [own]
    if count > 1:
        joined = torch.cat([x[0, at][None], x[1:].flatten(0, 1)])
        sources = torch.arange(1, len(joined), device=x.device)
        weights.append(incoming_weights(layer, joined, sources, 0, call))
    weight = torch.cat(weights).view(count, nodes)
    heat = weight * evidence
    maps = [part.view(count, side, side).cpu() for part in (weight, heat)]
    return at, maps[0], maps[1], float(heat[0].sum()), x[0, at]


@torch.no_grad()
def _attended(
    model: PGNN, chosen: TaggedDataset, label: int, maps: MapConfig, node: Callable[[int], int]
) -> _Found:
    """The same of the first layer of a graph of patches."""
    grid = model.builder.grid
    if grid is None:
        raise InputError("The nodes of this model are boxes, which lie anywhere; want a grid")
    training, stride = model.training, model.backbone.output_stride
    model.eval().backbone.set_output_stride(maps.output_stride)
    try:
        (images,) = photo_batches(chosen, View(maps.size or 256), len(chosen), workers=0)
        features = model.backbone(images.to(model.backbone.device))
        scores = model.forward_features(features, tags=_tags(chosen).to(features)).scores
        x, weight = patch_edges(model, features, node(grid))
    finally:
        model.backbone.set_output_stride(stride)
        model.train(training)
    height, width = scores.shape[2:]
    row, column = divmod(node(grid), grid)
    cell = scores[0, label][
        row * height // grid : max((row + 1) * height // grid, row * height // grid + 1),
        column * width // grid : max((column + 1) * width // grid, column * width // grid + 1),
    ]
    weight = weight.view(len(chosen), grid, grid).cpu()
    return node(grid), weight, weight, float(cell.mean()), x[node(grid)]


def patch_edges(model: PGNN, features: Tensor, node: int) -> tuple[Tensor, Tensor]:
    """Return the patches of one group of photos and the weights of all edges to one of them.

    Args:
        model (PGNN): A network with a graph of grid cells.
        features (torch.Tensor): What its backbone says of the photos :obj:`[n, C, h, w]`.
        node (int): The patch.
    """
    batch = model.builder(features)
    x = batch.x
    if model.class_embedding is not None:
        x = model.class_embedding(x, batch.node_class)
    (block, *_) = model.blocks
    assert isinstance(block, ComplementaryBlock)
    layer = block.attention

    def call(x: Tensor, edge_index: Tensor) -> Tensor:
        return layer(x, edge_index, node_class=batch.node_class)

    sources = torch.arange(len(x), device=x.device)
    return x, incoming_weights(layer, x, sources, node, call)


def _tags(dataset: TaggedDataset) -> Tensor:
    if dataset.tags is None:
        raise InputError("Evidence is that of tags; this split has none.")
    return dataset.tags


def _members(
    dataset: TaggedDataset,
    photo: str | int,
    class_name: str | None,
    partners: Sequence[str | int] | int,
) -> tuple[list[int], int]:
    """Indices of the photo and its partners, and the class."""
    tags, index = _tags(dataset).bool(), _index(dataset, photo)
    if not tags[index].any():
        raise InputError(f"image {dataset.image_ids[index]} has no tags")
    label = int(tags[index].int().argmax())
    if class_name is not None:
        if class_name not in dataset.classes:
            raise InputError(f"class_name={class_name!r}: want one of {', '.join(dataset.classes)}")
        label = dataset.classes.index(class_name)
    if not tags[index, label]:
        raise InputError(
            f"image {dataset.image_ids[index]} is not tagged {class_name}: there is no evidence"
        )
    if isinstance(partners, int):
        return [index, *partners_of(tags, index, label, partners)], label
    return [index, *(_index(dataset, name) for name in partners)], label


def partners_of(tags: Tensor, photo: int, label: int, count: int) -> list[int]:
    """Return the next photos after one that have a class, the first ones after the last.

    Args:
        tags (torch.Tensor): Multi-hot tags :obj:`[M, K]`.
        photo (int): The photo, which is not its own partner.
        label (int): The class, 0 to K - 1.
        count (int): The most that are returned.
    """
    others = [i for i in tags[:, label].nonzero()[:, 0].tolist() if i != photo]
    later = [i for i in others if i > photo]
    return (later + [i for i in others if i < photo])[:count]


def _index(dataset: TaggedDataset, photo: str | int) -> int:
    if isinstance(photo, int) and 0 <= photo < len(dataset):
        return photo
    if photo in dataset.image_ids:
        return dataset.image_ids.index(str(photo))
    raise InputError(f"photo={photo!r}: there is no such photo among the {len(dataset)}")
