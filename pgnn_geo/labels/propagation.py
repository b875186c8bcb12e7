r"""Message passing over all photos of a data set: layers on batches of patch graphs.

Each photo is one complete graph. Its nodes are the single positions of its feature map, or the
cells of a coarser grid. :class:`~pgnn_geo.graph.PatchGraphBuilder` makes the
:class:`~torch_geometric.data.Batch`, layers carry class evidence from node to node, and
:func:`~pgnn_geo.graph.stitch` lays the nodes back to maps.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.utils import scatter

from pgnn_geo.features.bank import Features
from pgnn_geo.graph import PatchGraphBuilder, stitch
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.nn import ClassPrototypes, CongenericPropagation
from pgnn_geo.ranks import ALONE, Ranks, blocks

PropagationName = Literal["none", "within", "prototypes", "both"]

#: Photos whose features are in memory at a time. With 16 the system's page faults for fresh memory
#: take several times as long as the prototypes' arithmetic.
CHUNK = 4

#: The same on a GPU, which has little to do with four.
GPU_CHUNK = 64


class PhotoGraphs(NamedTuple):
    """The graphs of a few photos, one each."""

    photos: Tensor  #: numbers of the photos :math:`(b)`
    batch: Batch  #: their graphs, :math:`V` nodes in all
    x: Tensor  #: what nodes are compared by :math:`(V, C)`: the mean feature of their positions
    tags: Tensor  #: tags of each node's photo :math:`(V, K)`, bool

    def nodes(self, maps: Tensor) -> Tensor:
        """Return maps :obj:`[b, K, h, w]` as values of the nodes :obj:`[V, K]`."""
        builder = PatchGraphBuilder(grid=self.batch.shared_geometry().grid)
        return _means(builder(maps.to(self.x.device), images_per_group=1))

    def sample(self, count: int) -> Tensor:
        """Return the numbers of so many nodes of every photo, or all, drawn by the first's own."""
        nodes = len(self.x) // len(self.photos)
        generator = torch.Generator().manual_seed(int(self.photos[0]))
        chosen = [
            i * nodes + torch.randperm(nodes, generator=generator)[:count].sort().values
            for i in range(len(self.photos))
        ]
        return torch.cat(chosen).to(self.x.device)

    def maps(self, values: Tensor) -> Tensor:
        """Return values of the nodes :obj:`[V, K]` as maps :obj:`[b, K, h, w]`."""
        batch = copy.copy(self.batch)
        batch.x = values[:, :, None, None].expand(-1, -1, *self.batch.x.shape[2:])
        return stitch(batch)

    def normalized(self, values: Tensor, power: float = 1.0) -> Tensor:
        """Divide values of the nodes :obj:`[V, K]` by a power of their maximum in each photo."""
        image = self.batch.image_batch
        peak = scatter(values, image, 0, len(self.photos), reduce="max")
        return values / peak.clamp(min=torch.finfo(values.dtype).tiny)[image] ** power


class Propagated(NamedTuple):
    """The step in which evidence travels within each photo, before it is taken."""

    features: Features  #: what positions are compared by
    start: TaggedMaps  #: the evidence that travels
    layer: CongenericPropagation  #: along whose edges
    grid: int | None  #: patches per side; single positions if not given
    device: torch.device | str


#: A step of message passing: from the graphs and the evidence at their nodes :obj:`[V, K]`, in
#: :math:`[0, 1]`, to new evidence of any positive scale; only that of the photos' tags is kept.
Step = Callable[[PhotoGraphs, Tensor], Tensor]


def photo_graphs(
    features: Features,
    tags: Tensor,
    grid: int | None = None,
    device: torch.device | str = "cpu",
    block: range | None = None,
) -> Iterator[PhotoGraphs]:
    """Yield the graphs of photos, a few at a time.

    Args:
        features (Features): The feature maps, squares.
        tags (torch.Tensor): Multi-hot tags :obj:`[M, K]`.
        grid (int, optional): Patches per side; single positions if not given.
        device (torch.device or str): Where the graphs are wanted. (default: :obj:`"cpu"`)
        block (range, optional): Which photos; all if not given.
    """
    builder = PatchGraphBuilder(grid=grid or features.shape[-1])
    block = range(len(features)) if block is None else block
    chunk = GPU_CHUNK if torch.device(device).type == "cuda" else CHUNK
    for photos in torch.arange(block.start, block.stop).split(chunk):
        batch = builder(features[photos].to(device), images_per_group=1)
        image_tags = tags[photos].bool().to(device)
        yield PhotoGraphs(photos, batch, _means(batch), image_tags[batch.image_batch])


def own_blocks(features: Features, ranks: Ranks) -> Sequence[range]:
    """Return this process' share of the blocks in which sums over photos are taken."""
    return ranks.share(blocks(len(features), CHUNK))


def _means(batch: Batch) -> Tensor:
    x: Tensor = batch.x
    return x.flatten(1) if x.shape[2:] == (1, 1) else x.mean(dim=(2, 3))


@torch.no_grad()
def complete(
    features: Features,
    start: TaggedMaps,
    steps: Sequence[Step],
    grid: int | None = None,
    device: torch.device | str = "cpu",
    confidence: float = 0.0,
    ranks: Ranks = ALONE,
) -> TaggedMaps:
    r"""Take the evidence of all photos through steps of message passing, one photo at a time.

    The evidence is divided by its maximum in each photo and class after every step, but after the
    last one by the power :math:`1 - \eta` of it. Memory does not grow with the number of photos,
    but for the maps.

    Args:
        features (Features): Features of all photos.
        start (TaggedMaps): Their evidence to begin with.
        steps (sequence of Step): For example :func:`within` of a layer.
        grid, device: See :func:`photo_graphs`.
        confidence (float): :math:`\eta`: with 0 the maximum of every map is 1, with 1 it is what
            the last step says, for example a probability. (default: :obj:`0.0`)
        ranks (Ranks): The processes that share the photos; each has all maps in the end.
            (default: this one alone)
    """
    rows, own = torch.empty_like(start.maps), own_blocks(features, ranks)
    for block in own:
        for graphs in photo_graphs(features, start.tags, grid, device, block):
            values = graphs.nodes(start.dense(graphs.photos))
            for turn, step in enumerate(steps, 1):
                power = 1 - confidence if turn == len(steps) else 1.0
                values = graphs.normalized(step(graphs, values) * graphs.tags, power)
            start.put(rows, graphs.photos, graphs.maps(values))
    bounds = torch.tensor([own[0].start, own[-1].stop] if own else [0, 0])
    first, last = torch.searchsorted(start.owners.cpu().contiguous(), bounds).tolist()
    return replace(start, maps=ranks.cat(rows[first:last]).to(rows))


def within(layer: CongenericPropagation) -> Step:
    """The step in which a node collects evidence from the similar nodes of its photo."""

    def step(graphs: PhotoGraphs, values: Tensor) -> Tensor:
        return layer(values, graphs.x, batch=graphs.batch.batch)

    return step


def from_prototypes(prototypes: ClassPrototypes) -> Step:
    """The step in which a node reads the prototypes of its classes."""

    def step(graphs: PhotoGraphs, values: Tensor) -> Tensor:
        return prototypes.score(graphs.x)

    return step


def fit_prototypes(
    features: Features,
    start: TaggedMaps,
    mean: Tensor,
    threshold: float = 0.3,
    grid: int | None = None,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> ClassPrototypes:
    """Return one more node per class, to which the nodes of all photos have passed their features.

    Args:
        features (Features): Features of all photos.
        start (TaggedMaps): The evidence that weighs them.
        mean (torch.Tensor): Their mean :obj:`[C]`, see :func:`mean_features`.
        threshold (float): See :class:`~pgnn_geo.nn.ClassPrototypes`. (default: :obj:`0.3`)
        grid, device: See :func:`photo_graphs`.
        ranks (Ranks): The processes that share the photos. (default: this one alone)
    """

    def empty() -> ClassPrototypes:
        size = start.tags.size(1), features.shape[1]
        return ClassPrototypes(*size, threshold, mean).to(device)

    parts = []
    for block in own_blocks(features, ranks):
        part = empty()
        for graphs in photo_graphs(features, start.tags, grid, device, block):
            values = graphs.nodes(start.dense(graphs.photos))
            part.update(graphs.x, values, graphs.tags.to(values))
        parts.append({name: value.cpu() for name, value in part.state_dict().items()})
    total = empty()
    for state in (state for each in ranks.gather(parts) for state in each):
        part = empty()
        part.load_state_dict(state)
        total.merge(part)
    return total


def mean_features(
    features: Features, device: torch.device | str = "cpu", ranks: Ranks = ALONE
) -> Tensor:
    """Return the mean feature of every photo, :obj:`[M, C]`, on the CPU."""

    def of_block(block: range) -> Tensor:
        chunks = torch.arange(block.start, block.stop).split(CHUNK)
        means = [features[photos].to(device).mean(dim=(2, 3)) for photos in chunks]
        return torch.cat(means).cpu()  # a GPU is waited for once

    means = [of_block(block) for block in own_blocks(features, ranks)]
    return ranks.cat(torch.cat([torch.empty(0, features.shape[1]), *means]))


def propagate(
    kind: PropagationName,
    features: Features,
    start: TaggedMaps,
    power: float = 1.0,
    device: torch.device | str = "cpu",
    observe: Callable[[Propagated], None] | None = None,
    ranks: Ranks = ALONE,
) -> TaggedMaps:
    """Complete attention maps by class evidence that travels along similar features.

    Args:
        kind (str): :obj:`"none"`; :obj:`"within"`: among the positions of one photo;
            :obj:`"prototypes"`: from all photos of the data set at once, the linear form;
            :obj:`"both"`: prototypes, then within each photo.
        features (Features): Features :obj:`[M, C, h, w]` of all photos, squares.
        start (TaggedMaps): The maps to complete.
        power (float): Exponent of the similarity within a photo. (default: :obj:`1.0`)
        device (torch.device or str): Where to compute. (default: :obj:`"cpu"`)
        observe (callable, optional): Called before evidence travels within the photos, if it does,
            to see along which edges.
        ranks (Ranks): The processes that share the photos. (default: this one alone)
    """
    if kind == "none":
        return start
    mean, steps = mean_features(features, device, ranks).mean(dim=0), list[Step]()
    if kind in ("prototypes", "both"):
        prototypes = fit_prototypes(features, start, mean, device=device, ranks=ranks)
        steps.append(from_prototypes(prototypes))
    if kind in ("within", "both"):
        layer = CongenericPropagation(mean=mean, power=power).to(device)
        if observe is not None:
            before = start
            if steps:
                before = complete(features, start, steps, device=device, ranks=ranks)
            observe(Propagated(features, before, layer, None, device))
        steps.append(within(layer))
    return complete(features, start, steps, device=device, ranks=ranks)
