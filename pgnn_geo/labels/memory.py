r"""A memory of sure positions, whose labels the positions of other photos read.

One bipartite graph: the nodes of the memory send their labels to every position of a photo, but
those of the photo itself send nothing. What a position is told is thus never an echo of what the
maps of its own photo said before, right or wrong.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import Features
from pgnn_geo.labels.position_classifier import confident_labels
from pgnn_geo.labels.propagation import own_blocks, photo_graphs
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.nn import CongenericPropagation
from pgnn_geo.nn.propagation import centered_unit
from pgnn_geo.ranks import ALONE, Ranks

#: Channels of a photo's mean feature by which a node of the memory knows its photo again.
MARKS = 16


class LabelMemory(nn.Module):
    r"""The sure positions of many photos and their labels.

    .. math::
        A_{nk} = \frac{s_{nk}}{s_{n0} + \sum_{c \in \mathcal{C}_n} s_{nc}}
        \quad \text{if } k \in \mathcal{C}_n, \text{ else } 0, \qquad
        s_{nc} = \frac{1}{|S_c|^{\beta}} \sum_{m \in S_c} \bigl[ \text{another photo} \bigr] \,
        e^{\tau \cos(\mathbf{E} \mathbf{u}_n, \mathbf{E} \mathbf{u}_m)}

    :math:`\mathcal{C}_n` are the tags of the position's photo, :math:`S_c` the nodes of label
    :math:`c`, 0 being the background: messages of
    :class:`~pgnn_geo.nn.CongenericPropagation` by its softmax kernel. :math:`\mathbf{E}` projects
    to the principal directions of the nodes: fewer channels are less work and less noise.

    Args:
        num_classes (int): Number of classes :math:`K`.
        channels (int): Channels of the features.
        size (int): The most nodes.
        power (float): :math:`\tau`, 1 or more. (default: :obj:`14.0`)
        directions (int): The most directions that features are compared in. (default: :obj:`256`)
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        size: int,
        power: float = 14.0,
        directions: int = 256,
    ) -> None:
        super().__init__()
        directions = min(directions, channels)
        self.basis = nn.Buffer(torch.zeros(channels, directions))
        # Half precision: cosines are off by less than 0.001, and a model is half as large.
        self.nodes = nn.Buffer(torch.zeros(size, directions, dtype=torch.float16))
        self.values = nn.Buffer(torch.zeros(size, num_classes + 1))  #: zero where there is no node
        self.marks = nn.Buffer(torch.zeros(size, MARKS))
        self.layer = CongenericPropagation("softmax", power=power)

    def read(self, unit: Tensor, tags: Tensor, marks: Tensor | None = None) -> Tensor:
        """Return the evidence of the positions of one photo.

        Args:
            unit (torch.Tensor): Their centred unit features.
            tags (torch.Tensor): The tags of the photo.
            marks (torch.Tensor, optional): What its own nodes are known by, see :func:`marks_of`;
                none is its own if not given.

        Shapes:
            - **unit:** :math:`(V, C)`
            - **tags:** :math:`(K)`
            - **marks:** :math:`(16)`
            - **output:** :math:`(V, K)`
        """
        allowed = F.pad(tags.bool(), (1, 0), value=True)
        values = self.values * allowed
        if marks is not None:
            near = (self.marks - marks).abs().amax(dim=1) <= 1e-3 * marks.abs().amax()
            values = values.masked_fill(near[:, None], 0)
        groups = [torch.zeros(len(x), dtype=torch.long, device=x.device) for x in (values, unit)]
        told = self.layer(values, (self.nodes, unit @ self.basis), batch=(groups[0], groups[1]))
        total = told.sum(dim=1, keepdim=True)
        return (told / total.masked_fill(total == 0, 1.0))[:, 1:]

    def extra_repr(self) -> str:
        """What :func:`repr` shows."""
        return f"nodes={int((self.values > 0).any(dim=1).sum())}, power={self.layer.power:g}"


def marks_of(means: Tensor) -> Tensor:
    """Return what photos are known by again, :obj:`[M, 16]`, of their mean features."""
    return F.pad(means[:, :MARKS], (0, max(0, MARKS - means.size(1))))


@torch.no_grad()
def fill_memory(
    memory: LabelMemory,
    features: Features,
    maps: TaggedMaps,
    means: Tensor,
    positions: int = 32768,
    foreground: float = 0.5,
    background: float = 0.25,
    balance: float = 0.75,
    grid: int | None = None,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> None:
    r"""Put positions that maps are sure of into a memory.

    As many are drawn from every photo. If they are more than the memory holds, up to half of it is
    left to the background, and the most frequent classes are thinned out evenly; a node that is
    left stands for those that are not.

    Args:
        memory (LabelMemory): The memory, whose size is the most that it takes.
        features (Features): Features of all photos, squares.
        maps (TaggedMaps): Their maps.
        means (torch.Tensor): The mean feature of each photo :obj:`[M, C]`.
        positions (int): The most positions that are drawn. (default: :obj:`32768`)
        foreground, background (float): See
            :func:`~pgnn_geo.labels.position_classifier.confident_labels`.
        balance (float): :math:`\beta`: with 0 each node counts the same, with 1 each label.
            (default: :obj:`0.75`)
        grid, device: See :func:`~pgnn_geo.labels.propagation.photo_graphs`.
        ranks (Ranks): The processes that share the photos. (default: this one alone)

    Raises:
        InputError: If the maps are nowhere sure.
    """
    size, channels = len(memory.nodes), features.shape[1]
    count = max(1, positions // len(features))
    mean, marks = means.mean(dim=0), marks_of(means)
    parts = [(torch.empty(0, channels), torch.empty(0, dtype=torch.long), torch.empty(0, MARKS))]
    for block in own_blocks(features, ranks):
        for graphs in photo_graphs(features, maps.tags, grid, device, block):
            values = graphs.nodes(maps.dense(graphs.photos))
            label = confident_labels(values, graphs.tags, foreground, background)
            chosen = graphs.sample(count)
            chosen = chosen[label[chosen] >= 0]
            owner = graphs.photos.to(device)[graphs.batch.image_batch[chosen]].cpu()
            unit = centered_unit(graphs.x[chosen], mean.to(device))
            parts.append((unit.cpu(), label[chosen].cpu(), marks[owner]))
    nodes, label, own = (ranks.cat(torch.cat(part)) for part in zip(*parts, strict=True))
    if not len(label):
        raise InputError("No position has a label: the maps are nowhere sure.")
    found = torch.bincount(label, minlength=memory.values.size(1))
    kept = _thinned(label, found, size)
    nodes, label, own = nodes[kept], label[kept], own[kept]
    _, directions = torch.linalg.eigh((nodes.t() @ nodes).double())  # the largest come last
    basis = directions.flip(1)[:, : memory.basis.size(1)].to(nodes)
    weight = found.clamp(min=1) ** (1 - balance) / torch.bincount(
        label, minlength=len(found)
    ).clamp(min=1)
    for buffer in memory.buffers():
        buffer.zero_()
    memory.basis.copy_(basis)
    memory.nodes[: len(label)] = F.normalize(nodes @ basis, dim=1).to(memory.nodes)
    memory.values[: len(label)] = (F.one_hot(label, len(weight)) * weight).to(memory.values)
    memory.marks[: len(label)] = own.to(memory.marks)


def _thinned(label: Tensor, found: Tensor, size: int) -> Tensor:
    """Return the numbers of at most so many nodes, at most half of them of the background."""
    if len(label) <= size:
        return torch.arange(len(label))
    classes, room = found[1:], size - min(int(found[0]), size // 2)
    # The most nodes of a class with which all of them fit.
    most = max((n for n in range(size + 1) if classes.clamp(max=n).sum() <= room), default=0)
    limits = [size - int(classes.clamp(max=most).sum()), *[most] * len(classes)]
    kept = []
    for value, limit in enumerate(limits):
        own = (label == value).nonzero()[:, 0]
        every = torch.linspace(0, len(own) - 1, min(limit, len(own))).round().long()
        kept.append(own[every])
    return torch.cat(kept).sort().values
