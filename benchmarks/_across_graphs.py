r"""Trained graphs across photos, each a residual to the scores of the linear classifier.

The scores of a position are :math:`\mathbf{z}_n + \mathbf{r}_n`, with :math:`\mathbf{z}_n` those of
the frozen classifier and :math:`\mathbf{r}_n` what the graph adds: zero before it is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgnn_geo.nn import ComplementaryConv

Partners = Literal["others", "random", "own"]
WIDTH = 32  #: rank of learned maps
KEYS = 13  #: positions of a photo that others listen to
TEMPERATURE = 14.0  #: of the frozen kernel
BALANCE = 0.75  #: exponent by which messages of frequent labels are weakened


@dataclass
class Draw:
    """Positions of all photos, and what the base says of them that was fitted to a part."""

    units: Tensor  #: centred unit features [M, N, C]
    scores: Tensor  #: of the linear classifier [M, N, K + 1]
    sure: Tensor  #: labels [M, N] that its maps are sure of, or -1
    tags: Tensor  #: [M, K], bool
    fitted: Tensor  #: [M], bool: the photos whose tags were learned from
    seed: int

    @cached_property
    def labels(self) -> Tensor:
        """The labels of the fitted photos, -1 elsewhere."""
        return torch.where(self.fitted[:, None], self.sure, -1)

    @cached_property
    def outside(self) -> Tensor:
        """What a photo may not show [M, K + 1]."""
        return F.pad(~self.tags, (1, 0))

    def generator(self, purpose: int) -> torch.Generator:
        """Return random numbers for one purpose, of this draw."""
        return torch.Generator().manual_seed(1000 * purpose + self.seed)


class Graph(nn.Module):
    """What is trained: from positions to scores and, where there are any, messages alone."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw, self.generator = draw, draw.generator(1)
        self.channels, self.labels = draw.units.size(2), draw.scores.size(2)

    def low_rank(self, out: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Return a linear map in two factors, zero at first."""
        first = torch.randn(self.channels, WIDTH, generator=self.generator)
        return nn.Parameter(first / self.channels**0.5), nn.Parameter(torch.zeros(WIDTH, out))

    def forward(self, photos: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scores [b, n, K + 1] and messages of nodes [b, n] of photos [b]."""
        raise NotImplementedError

    def edge_loss(self, photos: Tensor, nodes: Tensor) -> Tensor | float:
        """Return what edges are trained for of their own, if anything."""
        return 0.0

    def size(self) -> Tensor:
        """Return how far the weights are from where they began."""
        raise NotImplementedError


class Linear(Graph):
    """The kill test: a linear map of equal width, without a graph."""

    def __init__(self, draw: Draw) -> None:
        super().__init__(draw)
        self.first, self.second = self.low_rank(self.labels)
        self.bias = nn.Parameter(torch.zeros(self.labels))

    def forward(self, photos: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        x = self.draw.units[photos[:, None], nodes]
        base = self.draw.scores[photos[:, None], nodes]
        return base + x @ self.first @ self.second + self.bias, None

    def size(self) -> Tensor:
        """See the base."""
        return self.second.square().sum()


class Gate(Graph):
    r"""Class evidence of sure positions of other photos, along a frozen kernel with a learned gate.

    .. math::
        \mathbf{r}_n = \alpha \log \sum_m e^{\tau \langle \mathbf{u}_n, \mathbf{u}_m \rangle}
        \, \sigma(2 + \mathbf{u}_n^{\top} \mathbf{P} \mathbf{Q} \, \mathbf{u}_m) \, e^{b_{y_m}}
        \, \mathbf{e}_{y_m}, \qquad \alpha = 0, \; \mathbf{Q} = 0 \text{ at first}
    """

    def __init__(self, draw: Draw, partners: Partners = "others", weight: float = 0.0) -> None:
        super().__init__(draw)
        m, n, _ = draw.units.shape
        chosen = torch.stack([torch.randperm(n, generator=self.generator)[:KEYS] for _ in range(m)])
        rows = torch.arange(m)[:, None]
        labels = (draw.sure if partners == "own" else draw.labels)[rows, chosen].flatten()
        sure = labels >= 0
        keys = draw.units[rows, chosen].flatten(0, 1)[sure]
        if partners == "random":
            keys = keys[torch.randperm(len(keys), generator=self.generator)]
        self.keys, self.label, self.own = keys, labels[sure], partners == "own"
        self.owner = rows.expand_as(chosen).flatten()[sure]
        count = torch.bincount(self.label, minlength=self.labels).clamp(min=1)
        self.value = F.one_hot(self.label, self.labels).float()
        self.start = -BALANCE * count.log()
        self.bias = nn.Parameter(self.start.clone())
        self.first, self.second = self.low_rank(self.channels)
        self.sharpness = nn.Parameter(torch.tensor(TEMPERATURE).log())
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, photos: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base; in training a draw of 1,024 keys."""
        chosen = torch.arange(len(self.keys))
        if self.own:
            chosen = torch.isin(self.owner, photos).nonzero()[:, 0]
        elif self.training:
            chosen = torch.randperm(len(self.keys), generator=self.generator)[:1024]
        base = self.draw.scores[photos[:, None], nodes]
        u, k = self.draw.units[photos[:, None], nodes].flatten(0, 1), self.keys[chosen]
        edge = self.sharpness.exp() * (u @ k.t() - 1)
        edge = edge + F.logsigmoid(2 + self.channels * (u @ self.first) @ (k @ self.second.t()).t())
        same = photos.repeat_interleave(nodes.size(1))[:, None] == self.owner[chosen]
        heard = same if self.own else ~same
        edge = edge.masked_fill(~heard, -1e4)
        edge = (edge - edge.amax(dim=1, keepdim=True).detach()).exp()
        message = (edge @ self.value[chosen]).clamp(min=1e-9).log() + self.bias
        message = message * heard.any(dim=1, keepdim=True)  # who hears nobody keeps the base
        message = message.log_softmax(dim=1).view_as(base)
        return base + self.weight * message, message

    def size(self) -> Tensor:
        """See the base."""
        moved = (self.bias - self.start).square().sum()
        return self.channels * self.second.square().sum() + 10 * moved


class Memory(Graph):
    """A bipartite graph from centres of classes and backgrounds, which are learned, to positions.

    Each label has its k-means centres of sure positions, background eight times as many. With the
    cross-entropy of the messages alone the sums over centres are those of InfoNCE.
    """

    def __init__(self, draw: Draw, partners: Partners = "others", centres: int = 8) -> None:
        super().__init__(draw)
        sure = draw.labels >= 0
        x, label = draw.units[sure], draw.labels[sure]
        kept = torch.randperm(len(x), generator=self.generator)[:32768]
        x, label = x[kept], label[kept]
        parts = [self._means(x[label == c], centres * (1 if c else 8)) for c in range(self.labels)]
        self.start = torch.cat([means for means, _ in parts])
        of = torch.arange(self.labels).repeat_interleave(torch.tensor([len(n) for _, n in parts]))
        if partners == "random":
            of = of[torch.randperm(len(of), generator=self.generator)]
        number = torch.cat([n for _, n in parts]).clamp(min=1)
        total = torch.zeros(self.labels).index_add_(0, of, number).clamp(min=1)
        self.value = F.one_hot(of, self.labels).float()
        self.bias = nn.Parameter(number.log() - BALANCE * total[of].log())
        self.centres = nn.Parameter(self.start.clone())
        self.first, self.second = self.low_rank(self.channels)
        self.sharpness = nn.Parameter(torch.tensor(TEMPERATURE).log())
        self.weight = nn.Parameter(torch.zeros(()))

    def _means(self, x: Tensor, count: int, rounds: int = 8) -> tuple[Tensor, Tensor]:
        """Return k-means centres of unit length and the number of their positions."""
        means = x[torch.randperm(len(x), generator=self.generator)[:count]]
        number = x.new_zeros(len(means))
        for _ in range(rounds if len(means) else 0):
            near = (x @ means.t()).argmax(dim=1)
            number = torch.bincount(near, minlength=len(means)).float()
            total = torch.zeros_like(means).index_add_(0, near, x)
            means = F.normalize(total + 1e-6 * means, dim=1)  # an empty one stays
        return means, number

    def forward(self, photos: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        base = self.draw.scores[photos[:, None], nodes]
        u = self.draw.units[photos[:, None], nodes]
        u = F.normalize(u + u @ self.first @ self.second, dim=-1)
        edge = self.sharpness.exp() * (u @ F.normalize(self.centres, dim=1).t() - 1) + self.bias
        edge = (edge - edge.amax(dim=-1, keepdim=True).detach()).exp()
        message = (edge @ self.value).clamp(min=1e-9).log().log_softmax(dim=-1)
        return base + self.weight * message, message

    def size(self) -> Tensor:
        """See the base."""
        moved = (self.centres - self.start).square().sum()
        return self.channels * self.second.square().sum() + 10 * moved


class Layer(Graph):
    """The paper's layer between positions of four photos of a class, features and class evidence.

    Args:
        draw (Draw): The positions.
        partners (str): Photos of one of a photo's classes; any; or positions of its own alone.
        normalize (str): See :class:`~pgnn_geo.nn.ComplementaryConv`; :obj:`"none"`: a linear map
            of equal width in its place.
    """

    mates = 3

    def __init__(
        self, draw: Draw, partners: Partners = "others", normalize: str = "softmax"
    ) -> None:
        super().__init__(draw)
        torch.manual_seed(draw.seed)  # the layers draw their own weights
        # Evidence of all classes: that of a photo's tags alone would tell them.
        self.x = torch.cat([draw.units * self.channels**0.5, draw.scores.softmax(dim=2)], dim=2)
        width, self.partners, self.plain = 2 * WIDTH, partners, normalize == "none"
        size = self.x.size(2)
        self.layer: nn.Module = (
            nn.Linear(size, width)
            if self.plain
            else ComplementaryConv(
                size,
                width,
                heads=4,
                dropout=0.1,
                normalize="sinkhorn" if normalize == "sinkhorn" else "softmax",
                sinkhorn_rounds=3,
            )
        )
        self.out = nn.Parameter(torch.zeros(width, self.labels))

    def _others(self, photo: int) -> Tensor:
        """Draw partners of a photo."""
        pool = torch.arange(len(self.x))
        if self.partners == "others":
            own = self.draw.tags[photo].nonzero()[:, 0]
            kind = own[torch.randint(len(own), (1,), generator=self.generator)]
            pool = self.draw.tags[:, kind[0]].nonzero()[:, 0]
        pool = pool[torch.randperm(len(pool), generator=self.generator)]
        return pool[pool != photo][: self.mates]

    def forward(self, photos: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        base, x = self.draw.scores[photos[:, None], nodes], self.x[photos[:, None], nodes]
        if self.plain:
            return base + self.layer(x).relu() @ self.out, None
        groups, step = [], 8 if self.training else 4  # every so many of a partner's positions
        for photo, own in zip(photos.tolist(), x, strict=True):
            if self.partners == "own":
                groups.append(own)
            else:
                first = int(torch.randint(step, (1,), generator=self.generator))
                more = self.x[self._others(photo), first::step].flatten(0, 1)
                groups.append(torch.cat([own, more]))
        sizes = [len(group) for group in groups]
        batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        out = self.layer(torch.cat(groups), batch=batch).split(sizes)
        return base + torch.stack([y[: x.size(1)] for y in out]).relu() @ self.out, None

    def size(self) -> Tensor:
        """See the base."""
        return 10 * self.out.square().sum()


class Edges(Graph):
    r"""Edges between photos classify the tags that both have and those of one alone.

    A photo and a partner, for one half with a common tag and for the other without: where a
    position has a counterpart in the partner, by a learned similarity, its evidence pools to the
    common tags, or to background if there are none, and elsewhere to the tags that the partner
    lacks. Read out over all photos, the residual of class :math:`c` is

    .. math::
        r_{nc} = \gamma_1 \log \frac{\bar{o}_{nc}}{\bar{o}_{n \bar{c}}} - \gamma_2 \,
        \bar{o}_{n \bar{c}}

    with :math:`\bar{o}` the mean gate of photos with and without the tag.
    """

    def __init__(self, draw: Draw, partners: Partners = "others") -> None:
        super().__init__(draw)
        m, n, _ = draw.units.shape
        self.chosen = torch.stack(
            [torch.randperm(n, generator=self.generator)[:KEYS] for _ in range(m)]
        )
        self.tags = draw.tags.float()
        if partners == "random":
            self.tags = self.tags[torch.randperm(m, generator=self.generator)]
        self.learned = draw.fitted.nonzero()[:, 0]
        self.first, self.second = self.low_rank(self.channels)
        self.slope, self.middle = nn.Parameter(torch.tensor(12.0)), nn.Parameter(torch.tensor(0.5))
        self.weight = nn.Parameter(torch.zeros(2))

    def embedded(self, u: Tensor) -> Tensor:
        """Return what is compared."""
        return F.normalize(u + u @ self.first @ self.second, dim=-1)

    def gate(self, similarity: Tensor) -> Tensor:
        """Return whether a position has a counterpart, from similarities to a photo's [..., k]."""
        soft = 20 * similarity
        near = (soft.logsumexp(dim=-1) - math.log(soft.size(-1))) / 20 + 0.1
        return torch.sigmoid(self.slope * (near - self.middle))

    def edge_loss(self, photos: Tensor, nodes: Tensor) -> Tensor:
        """Return how badly edges tell tags."""
        own, others = self.draw.tags[photos].float(), self.tags[self.learned]
        common = own @ others.t() > 0
        picked = []
        for wanted in (common, ~common):
            chance = wanted.float() + 1e-9  # a photo that has no such partner takes any
            picked.append(torch.multinomial(chance, 1, generator=self.generator)[:, 0])
        j = self.learned[torch.cat(picked)]
        part = torch.randperm(self.draw.units.size(1), generator=self.generator)[:64]
        x = self.embedded(self.draw.units[photos[:, None], nodes]).repeat(2, 1, 1)
        y = self.embedded(self.draw.units[j[:, None], part])
        gate = self.gate(x @ y.mT)[..., None]
        shown = self.draw.scores[photos[:, None], nodes].softmax(dim=2).repeat(2, 1, 1)
        inside = (gate * shown).sum(dim=1) / gate.sum(dim=1).clamp(min=1e-3)
        beside = ((1 - gate) * shown).sum(dim=1) / (1 - gate).sum(dim=1).clamp(min=1e-3)
        both = own.repeat(2, 1) * self.tags[j]
        alone = own.repeat(2, 1) * (1 - self.tags[j])
        target = torch.cat([(both.sum(dim=1, keepdim=True) == 0).float(), both], dim=1)
        loss = -(target * inside.clamp(min=1e-6).log()).sum() / target.sum()
        return loss - (alone * beside.clamp(min=1e-6)[:, 1:].log()).sum() / alone.sum().clamp(min=1)

    def forward(self, photos: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base."""
        base, u = self.draw.scores[photos[:, None], nodes], self.draw.units[photos[:, None], nodes]
        heard = self.learned
        if self.training:
            heard = heard[torch.randperm(len(heard), generator=self.generator)[:128]]
        keys = self.draw.units[heard[:, None], self.chosen[heard]]
        near = self.embedded(u).flatten(0, 1) @ self.embedded(keys).flatten(0, 1).t()
        near = near.view(-1, *keys.shape[:2])
        tags, listened = self.tags[heard], heard != photos.repeat_interleave(nodes.size(1))[:, None]
        gate, listened = self.gate(near) * listened, listened.float()
        having = (gate @ tags) / (listened @ tags).clamp(min=1)
        lacking = (gate @ (1 - tags)) / (listened @ (1 - tags)).clamp(min=1)
        ratio = (having + 1e-3).log() - (lacking + 1e-3).log()
        more = self.weight[0] * ratio - self.weight[1] * lacking
        return base + F.pad(more, (1, 0)).view_as(base), None

    def size(self) -> Tensor:
        """See the base."""
        return self.channels * self.second.square().sum()
