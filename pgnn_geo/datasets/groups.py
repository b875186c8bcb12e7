"""Groups of images that share a class: sampling for training and for inference, collation."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler, default_collate

from pgnn_geo.datasets.base import Item
from pgnn_geo.datasets.listing import first_of
from pgnn_geo.errors import InputError, note


class Groups(NamedTuple):
    r"""Groups of image indices; the first image of a group is its anchor.

    Shapes:
        - **indices:** :math:`(G, N)`
        - **classes:** :math:`(G)`, the class that the group shares, 0..K-1
    """

    indices: Tensor
    classes: Tensor


class ClassGroupSampler(Sampler[list[int]]):
    r"""Batches of groups of images that share a class; use it as :obj:`batch_sampler`.

    Every epoch visits every image once as an anchor. The group's class is drawn from the anchor's
    tags, its other images from those with that class, uniformly and without replacement. A class
    with fewer images than a group repeats some, with one warning. The draws depend on the seed and
    the epoch alone: call :meth:`set_epoch` before each.

    Replicas share one draw and take every :math:`R`-th anchor: no anchor is on two of them, and
    all have as many batches. One that would be left with an empty last batch repeats its first
    group there.

    Args:
        tags (Tensor): Multi-hot tags of shape :math:`(M, K)`.
        group_size (int): Images per group, :math:`N`. (default: :obj:`3`)
        groups_per_batch (int): Groups per batch. (default: :obj:`4`)
        seed (int): Seed, the same on all replicas. (default: :obj:`0`)
        rank (int, optional): This replica; that of :mod:`torch.distributed` by default, or 0.
        num_replicas (int, optional): Number of replicas :math:`R`, found likewise, or 1.
        drop_last (bool): Leave out the anchors that do not fill a batch on every replica.
            (default: :obj:`False`)
        names (sequence of str, optional): Of the classes, for the warning.

    Raises:
        InputError: If an image has no tags or a number is out of range.
    """

    def __init__(
        self,
        tags: Tensor,
        group_size: int = 3,
        groups_per_batch: int = 4,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
        drop_last: bool = False,
        names: Sequence[str] | None = None,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        if min(group_size, groups_per_batch) < 1 or not 0 <= rank < num_replicas:
            raise InputError(
                f"want group_size, groups_per_batch >= 1 and 0 <= rank < num_replicas; got "
                f"{group_size}, {groups_per_batch}, {rank}, {num_replicas}"
            )
        self._pool = _ClassPool(tags)
        if untagged := (~self._pool.tags.any(1)).nonzero().flatten().tolist():
            raise InputError(f"tags: images without tags, by index: {first_of(map(str, untagged))}")
        self.group_size = group_size
        self.groups_per_batch = groups_per_batch
        self.seed = seed
        self.rank = rank
        self.num_replicas = num_replicas
        self.drop_last = drop_last
        self.epoch = 0

        per_replica = len(tags) / num_replicas
        if drop_last:
            self._num_batches = int(per_replica) // groups_per_batch
        else:
            self._num_batches = math.ceil(math.ceil(per_replica) / groups_per_batch)
        if int(per_replica) < 1 or not self._num_batches:
            raise InputError(
                f"{len(tags)} images are too few for {num_replicas} replica(s) with "
                f"{groups_per_batch} group(s) a batch"
            )
        small = (self._pool.count > 0) & (self._pool.count < group_size)
        if small.any():
            few = small.nonzero().flatten().tolist()
            named = few if names is None else ", ".join(names[k] for k in few)
            note(f"classes {named} have fewer than {group_size} images; their groups repeat images")

    @property
    def sampler(self) -> "ClassGroupSampler":
        """Itself: trainers look for :meth:`set_epoch` at :obj:`batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw that the next iteration uses."""
        self.epoch = epoch

    def groups(self, epoch: int | None = None) -> Groups:
        """This replica's groups in the order of iteration; batch b starts at b * groups_per_batch.

        Args:
            epoch (int, optional): The epoch; that of :meth:`set_epoch` by default.
        """
        epoch = self.epoch if epoch is None else epoch
        # One stream per (seed, epoch): nearby seeds must not repeat each other's epochs.
        entropy = np.random.SeedSequence([self.seed % 2**64, epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy[0]))
        tags = self._pool.tags
        anchors = torch.randperm(len(tags), generator=generator)
        draws = torch.rand(tags.shape, generator=generator)
        classes = draws.masked_fill(~tags[anchors], -1.0).argmax(1)
        draws = torch.rand(len(tags), self.group_size - 1, generator=generator, dtype=torch.float64)
        partners = self._pool.draw(anchors, classes, draws)
        indices = torch.cat([anchors[:, None], partners], 1)

        mine = slice(self.rank, None, self.num_replicas)
        indices, classes = indices[mine], classes[mine]
        if self.drop_last:
            kept = self._num_batches * self.groups_per_batch
            indices, classes = indices[:kept], classes[:kept]
        elif len(indices) <= (self._num_batches - 1) * self.groups_per_batch:
            indices, classes = (torch.cat([x, x[:1]]) for x in (indices, classes))
        return Groups(indices, classes)

    def __iter__(self) -> Iterator[list[int]]:
        indices = self.groups().indices.flatten().tolist()
        step = self.groups_per_batch * self.group_size
        return (indices[start : start + step] for start in range(0, len(indices), step))

    def __len__(self) -> int:
        return self._num_batches


def partner_groups(
    tags: Tensor,
    image_indices: Sequence[int] | Tensor | None = None,
    partners: int = 3,
    group_size: int = 3,
    seed: int = 0,
) -> Groups:
    r"""Fixed groups for inference: :obj:`partners` of them per image and tagged class.

    The partners of an image for a class depend on the seed, its index, the class and the class's
    images only, so that an image gets the same map whatever it is batched with. They are drawn
    without replacement over all its groups, as far as the class has images.

    Args:
        tags (Tensor): Multi-hot tags of the whole data set, shape :math:`(M, K)`.
        image_indices (sequence of int, optional): Images to group, all by default. One without
            tags has no groups.
        partners (int): Groups per image and class, :math:`P`. (default: :obj:`3`)
        group_size (int): Images per group. (default: :obj:`3`)
        seed (int): Seed. (default: :obj:`0`)

    Returns:
        Groups ordered by image, then class, then number; :math:`P` consecutive ones belong to one
        image and class.
    """
    if min(partners, group_size) < 1:
        raise InputError(
            f"partners and group_size must be 1 or more, got {partners} and {group_size}"
        )
    pool = _ClassPool(tags)
    images = torch.arange(len(tags)) if image_indices is None else torch.as_tensor(image_indices)
    rows, classes = pool.tags[images].nonzero(as_tuple=True)
    anchors, wanted = images[rows], partners * (group_size - 1)
    draws = _hashed_uniform(seed, anchors.numpy()[:, None], classes.numpy()[:, None], wanted)
    others = pool.draw(anchors, classes, torch.from_numpy(draws))
    others = (
        others.view(-1, group_size - 1) if wanted else others.new_empty(len(rows) * partners, 0)
    )
    indices = torch.cat([anchors.repeat_interleave(partners)[:, None], others], 1)
    return Groups(indices, classes.repeat_interleave(partners))


def collate_groups(items: Sequence[Item], group_size: int) -> dict[str, Any]:
    r"""Collate items that :class:`ClassGroupSampler` picked into one batch.

    Args:
        items (sequence of dict): :math:`B` items, the images of a group next to each other.
        group_size (int): Images per group.

    Returns:
        The items' fields, stacked, with :obj:`image_id` a list, :obj:`mask` a list where masks
        differ in size, and :obj:`group` of shape :math:`(B)`, the sorted group of each image.

    Raises:
        InputError: If the items do not fill groups, or images differ in size.
    """
    if len(items) % group_size:
        raise InputError(f"{len(items)} items do not fill groups of {group_size}")
    shapes = {tuple(item["image"].shape): item["image_id"] for item in items if "image" in item}
    if len(shapes) > 1:
        raise InputError(f"images of one batch differ in shape: {shapes}; resize or crop them")
    batch: dict[str, Any] = {}
    for name in items[0]:
        values = [item[name] for item in items]
        uneven = name == "mask" and len({v.shape for v in values}) > 1
        batch[name] = values if uneven else default_collate(values)
    batch["group"] = torch.arange(len(items)) // group_size
    return batch


class _ClassPool:
    """The images of each class, and draws among them."""

    def __init__(self, tags: Tensor) -> None:
        if tags.ndim != 2 or not tags.numel():
            raise InputError(f"tags: want shape [M, K] with M, K > 0, got {list(tags.shape)}")
        self.tags = tags.detach().cpu() > 0
        self.count = self.tags.sum(0)
        self._start = self.count.cumsum(0) - self.count
        self._members = self.tags.t().nonzero()[:, 1]  # by class, ascending in each
        self._place = self.tags.cumsum(0) - 1  # an image's place among its class's images

    def draw(self, anchors: Tensor, classes: Tensor, draws: Tensor) -> Tensor:
        r"""Other images of the anchors' classes, without replacement as far as there are any.

        Args:
            anchors (Tensor): Image indices of shape :math:`(G)`.
            classes (Tensor): A class of each, shape :math:`(G)`.
            draws (Tensor): Uniform float64 numbers in :math:`[0, 1)`, shape :math:`(G, n)`.
        """
        others = self.count[classes] - 1
        # Draw a place among those left, then step over the places taken, in ascending order.
        taken = self._place[anchors, classes][:, None]
        places = []
        for j, draw in enumerate(draws.unbind(1)):
            place = (draw * (others - j).clamp(min=1)).long()
            for k in range(j + 1):
                place += place >= taken[:, k]
            places.append(place)
            taken = torch.cat([taken, place[:, None]], 1).sort(1).values
        if not places:
            return anchors.new_empty(len(anchors), 0)
        # Where they run out, start over; alone in its class, an image is its own partner.
        column = torch.arange(draws.shape[1]) % others.clamp(min=1)[:, None]
        chosen = torch.stack(places, 1).gather(1, column)
        chosen = torch.where(others[:, None] > 0, chosen, self._place[anchors, classes][:, None])
        return self._members[self._start[classes][:, None] + chosen]


def _hashed_uniform(
    seed: int, first: NDArray[np.int64], second: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Uniform numbers that depend on (seed, first, second, column) alone, by SplitMix64."""
    state = np.full(1, seed % 2**64, dtype=np.uint64)
    for key in (first, second, np.arange(count)[None]):
        state = state ^ key.astype(np.uint64)
        state = state + np.uint64(0x9E3779B97F4A7C15)  # wraps, as it should
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
