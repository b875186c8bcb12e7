r"""What the other classes say of a position: an object, or what is around objects.

Tags tell no train from its rails: the rails are in every photo of a train and hardly in others. But
to the photos of all other classes rails are ground, and a train looks more like a bus than like a
road. Tags must be complete: an object that its photo has no tag for counts as ground.
"""

import torch
from torch import Tensor

from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import Features
from pgnn_geo.labels.position_classifier import confident_labels
from pgnn_geo.labels.propagation import PhotoGraphs, Step, photo_graphs
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.nn import CongenericPropagation
from pgnn_geo.nn.propagation import centered_unit


class _Sums:
    """Sums of features by what their positions are, for each class without its own photos."""

    def __init__(self, num_classes: int, channels: int, device: torch.device | str) -> None:
        k = num_classes
        self.objects = torch.zeros(k, k, channels, dtype=torch.float64, device=device)
        self.object_count = torch.zeros(k, k, dtype=torch.float64, device=device)
        self.around = torch.zeros(k, k, channels, dtype=torch.float64, device=device)
        self.around_count = torch.zeros(k, k, dtype=torch.float64, device=device)

    def add(self, unit: Tensor, label: Tensor, tags: Tensor) -> None:
        """Add a photo: features :obj:`[V, C]`, labels :obj:`[V]`, its tags :obj:`[K]`."""
        k = len(tags)
        kind = torch.nn.functional.one_hot(label.clamp(min=0), k + 1).to(unit)
        kind = kind * (label >= 0)[:, None]
        total, count = (kind.t() @ unit).double(), kind.sum(dim=0).double()
        out = ~tags  # the classes without this photo
        self.objects[out] += total[1:]
        self.object_count[out] += count[1:]
        pairs = out[:, None] & tags  # [K, K]: the second class is in the photo, the first is not
        self.around[pairs] += total[0]
        self.around_count[pairs] += count[0]


@torch.no_grad()
def fit_objectness(
    features: Features,
    maps: TaggedMaps,
    mean: Tensor,
    foreground: float = 0.5,
    background: float = 0.25,
    balance: float = 0.5,
    grid: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Return for every class the linear score of objects that the other classes learn.

    .. math::
        o_k(\mathbf{u}) = \langle \mathbf{d}_k, \mathbf{u} \rangle - \tfrac{1}{2} \langle
        \mathbf{d}_k, \mathbf{m}^+_k + \mathbf{m}^-_k \rangle, \qquad
        \mathbf{d}_k = \mathbf{m}^+_k - \mathbf{m}^-_k, \qquad
        \mathbf{m}^{\pm}_k = \sum_{c \neq k} \omega_{kc} \, \mathbf{m}^{\pm}_{kc}, \quad
        \omega_{kc} \propto |S_{kc}|^{1 - \beta}

    Only photos without the tag :math:`k` are looked at. :math:`\mathbf{m}^+_{kc}` is the mean
    centred unit feature of their positions :math:`S_{kc}` that the maps are sure to be of class
    :math:`c`, and :math:`\mathbf{m}^-_{kc}` that of the background in those with tag :math:`c`.
    The score is positive where a feature is nearer to the objects than to what is around them. No
    errors that the maps of class :math:`k` make can get into it.

    Args:
        features (Features): Features of all photos, squares.
        maps (TaggedMaps): Their maps.
        mean (torch.Tensor): The mean feature :obj:`[C]`.
        foreground, background (float): See
            :func:`~pgnn_geo.labels.position_classifier.confident_labels`.
        balance (float): :math:`\beta`: with 0 each position counts the same, with 1 each class.
            (default: :obj:`0.5`)
        grid, device: See :func:`~pgnn_geo.labels.propagation.photo_graphs`.

    Returns:
        The weights :obj:`[K, C + 1]`, float32, the bias last. Zero for a class beside which no
        other is seen: all others are then of no help.

    Raises:
        InputError: If the maps belong to other photos than the features.
    """
    if len(features) != len(maps.tags):
        raise InputError(f"features of {len(features)} photos, maps of {len(maps.tags)}")
    sums = _Sums(maps.tags.size(1), features.shape[1], device)
    for graphs in photo_graphs(features, maps.tags, grid, device):
        values = graphs.nodes(maps.dense(graphs.photos))
        label = confident_labels(values, graphs.tags, foreground, background)
        unit = centered_unit(graphs.x, mean)
        nodes = len(values) // len(graphs.photos)
        tags = maps.tags[graphs.photos].bool().cpu()  # a mask on a GPU would be waited for
        for u, y, own in zip(unit.split(nodes), label.split(nodes), tags, strict=True):
            sums.add(u, y, own)
    # Both sides of a class are needed: its objects, and the background of the same photos.
    seen = (sums.object_count > 0) & (sums.around_count > 0)
    weight = seen * sums.object_count.clamp(min=1) ** (1 - balance)
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1)
    objects, around = (
        (weight[..., None] * total / count.clamp(min=1)[..., None]).sum(dim=1)
        for total, count in (
            (sums.objects, sums.object_count),
            (sums.around, sums.around_count),
        )
    )
    direction = objects - around
    bias = -(direction * (objects + around)).sum(dim=1) / 2
    return torch.cat([direction, bias[:, None]], dim=1).float()


def on_objects(weight: Tensor, layer: CongenericPropagation) -> Step:
    r"""The step that keeps the evidence of a class where the other classes see an object.

    .. math::
        A^{\prime}_{nk} = A_{nk} \, \bigl[ \, o_k > 0 \, \bigr]_n, \qquad
        \text{with } o_k \text{ propagated within the photo}

    A class of which no other says anything keeps all of its evidence.

    Args:
        weight (torch.Tensor): Of :func:`fit_objectness`.
        layer (CongenericPropagation): Propagates the scores within each photo.
    """

    def step(graphs: PhotoGraphs, values: Tensor) -> Tensor:
        unit = centered_unit(graphs.x, layer.mean)
        score = torch.addmm(weight[:, -1], unit, weight[:, :-1].t())
        objects = layer(score, graphs.x, batch=graphs.batch.batch) > 0
        return values * (objects | (weight == 0).all(dim=1))

    return step
