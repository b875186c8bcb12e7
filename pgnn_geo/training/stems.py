"""What stage 1 sees in a step: groups of same-class photos, windows of their frozen stems."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pgnn_geo.datasets import ClassGroupSampler, TaggedDataset, TrainTransform, collate_groups
from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.stems import stem_bank
from pgnn_geo.features.views import Progress, View, no_progress
from pgnn_geo.graph.node_boxes import NodeBoxes
from pgnn_geo.labels import AttentionStore
from pgnn_geo.nn.backbones import Backbone
from pgnn_geo.precision import Precision, default_device
from pgnn_geo.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from pgnn_geo.training.attention import AttentionTrainingConfig


class StemDataset(Dataset[Any]):
    """A tagged data set whose photos are already passed through the backbone's frozen stages.

    An item has the :obj:`stem` :math:`(C, h, w)` of a window, the :obj:`window` in fractions of the
    photo, :obj:`flip`, and the photo's :obj:`tags`, :obj:`image_id` and :obj:`index`.

    Args:
        dataset (TaggedDataset): The photos and tags.
        banks (tuple of FeatureBank): The photos as they are, and mirrored; one is drawn each time.
        window (float): Side of the random window as a fraction of the whole. (default: :obj:`1.0`)

    Raises:
        InputError: If the data set has no tags or :obj:`window` is out of range.
    """

    def __init__(self, dataset: TaggedDataset, banks: tuple[FeatureBank, ...], window: float = 1.0):
        if not 0 < window <= 1:
            raise InputError(f"window={window}: want more than 0, and 1 at most")
        self.dataset = dataset
        self.tags = tags_of(dataset)
        self.banks = banks
        side = banks[0].shape[-1]
        self.window = max(1, round(window * side))
        self.room = side - self.window + 1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        flip = int(torch.randint(len(self.banks), ()))
        top, left = torch.randint(self.room, (2,)).tolist()
        rows, columns = slice(top, top + self.window), slice(left, left + self.window)
        return {
            "stem": self.banks[flip].read(index, rows, columns),
            "window": self._window_in_photo(top, left, bool(flip)),
            "flip": bool(flip),
            "tags": self.tags[index],
            "image_id": self.dataset.image_ids[index],
            "index": index,
        }

    def _window_in_photo(self, top: int, left: int, flip: bool) -> Tensor:
        """The box (x1, y1, x2, y2) that a window shows, as fractions of the photo."""
        side = self.banks[0].shape[-1]
        left = side - left - self.window if flip else left  # windows are cut after mirroring
        return torch.tensor([left, top, left + self.window, top + self.window]) / side


class SeededItems(Dataset[Any]):
    """A data set whose items are drawn with a seed of their own, whichever process draws them.

    Args:
        dataset (Dataset[Any]): Draws from PyTorch's global generator.
    """

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.dataset[index]


class SeededOrder(Sampler[tuple[int, int]]):
    """The items of a sampler, with a seed for each item of :class:`SeededItems`.

    Args:
        order (Sampler): Picks the items.
        key (sequence of int): What the seeds follow from, such as a seed, an epoch and a rank.
    """

    def __init__(self, order: Sampler[int], key: Sequence[int]):
        self.order = order
        self.key = [number % 2**64 for number in key]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        picked = list(self.order)
        seeds = np.random.SeedSequence(self.key).generate_state(len(picked), np.uint64)
        return iter(zip(picked, seeds.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.order)  # type: ignore[arg-type]


class SeededGroups(Sampler[list[tuple[int, int]]]):
    """The batches of a group sampler, with a seed for each item of :class:`SeededItems`.

    Seeds follow from the sampler's seed, its epoch and the item's place in the epoch of all ranks,
    so that a training that was cut off draws what it would have drawn, and several what one does.

    Args:
        groups (ClassGroupSampler): Picks the photos.
    """

    def __init__(self, groups: ClassGroupSampler):
        self.groups = groups

    @property
    def sampler(self) -> "SeededGroups":
        """Itself: trainers look for :meth:`set_epoch` at :obj:`batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw that the next iteration uses."""
        self.groups.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        groups, key = self.groups, [self.groups.seed % 2**64, self.groups.epoch, 0, 1]
        batches = list(groups)
        size, count = groups.group_size, sum(map(len, batches)) // groups.group_size
        # Anchors are dealt out in turn: those of all ranks, longer or shorter, begin with the same.
        states = np.random.SeedSequence(key).generate_state(
            count * groups.num_replicas * size, np.uint64
        )
        seeds = iter(states.reshape(count, -1, size)[:, groups.rank].flatten().tolist())
        return iter([[(index, next(seeds)) for index in batch] for batch in batches])

    def __len__(self) -> int:
        return len(self.groups)


def group_loader(
    backbone: Backbone | None,
    dataset: TaggedDataset,
    stem_folder: Path,
    config: "AttentionTrainingConfig",
    epoch: int = 0,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> DataLoader[Any]:
    """Return the loader of groups of same-class photos, as stage 1 sees them.

    What it draws depends on the seed and the epoch alone, not on the number of workers.

    Args:
        backbone (Backbone, optional): Its frozen stages are run once with
            :obj:`augment="window"`; of crops it is not needed.
        dataset (TaggedDataset): Photos with tags.
        stem_folder (Path): Where their outputs are kept.
        config (AttentionTrainingConfig): How photos are seen and grouped.
        epoch (int): The epoch of the first iteration; a trainer sets the others.
            (default: :obj:`0`)
        progress (callable, optional): Progress display of the frozen stages.
        ranks (Ranks): The processes that share the groups of every batch.
            (default: this one alone)

    Raises:
        InputError: If the data set has no tags, or the groups of a batch cannot be shared evenly.
    """
    tags = tags_of(dataset)
    size, group_size, seed, workers = config.size, config.group_size, config.seed, config.workers
    groups_per_batch = config.groups_per_batch
    if groups_per_batch % ranks.size:
        raise InputError(
            f"groups_per_batch={groups_per_batch} are shared by {ranks.size} processes: want a "
            "multiple of their number"
        )
    if config.augment == "window":
        assert backbone is not None
        views = (View(size), View(size, flip=True))
        options = config.precision, progress, ranks
        banks = stem_banks(backbone, dataset, stem_folder, views, *options).values()
        photos: StemDataset | TaggedDataset = StemDataset(dataset, tuple(banks), config.window)
    else:
        photos = dataset.with_transform(TrainTransform(size))
    own = groups_per_batch // ranks.size
    groups = SeededGroups(
        ClassGroupSampler(
            tags, group_size, own, seed, ranks.rank, ranks.size, names=dataset.classes
        )
    )
    groups.set_epoch(epoch)
    return DataLoader(
        SeededItems(photos),
        batch_sampler=groups,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=partial(collate_groups, group_size=group_size),
        pin_memory=torch.cuda.is_available(),
    )


def stem_banks(
    backbone: Backbone,
    dataset: TaggedDataset,
    folder: Path,
    views: Iterable[View],
    precision: Precision = "auto",
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> dict[View, FeatureBank]:
    """Return the output of the frozen stages for each view, see :func:`stem_bank`.

    They are run on the device of the training to come, to which the backbone moves.

    Args:
        backbone (Backbone): Its frozen stages are run.
        dataset (TaggedDataset): The photos.
        folder (Path): Where the outputs are kept.
        views (iterable of View): How photos are seen.
        precision, progress, ranks: See :func:`~pgnn_geo.features.stem_bank`.
    """
    backbone.to(default_device())
    return {
        view: stem_bank(backbone, dataset, folder, view, progress, precision, ranks)
        for view in views
    }


def tags_of(dataset: TaggedDataset) -> Tensor:
    """Return the tags of a data set.

    Raises:
        InputError: If it has none.
    """
    if dataset.tags is None:
        raise InputError("Training needs image tags; this split has none.")
    return dataset.tags


#: What :func:`photo_view` reads of a batch.
VIEW_KEYS = ("index", "flip", "crop", "window")


def photo_view(batch: dict[str, Any], sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""What a batch shows: photos, boxes in their pixels, and whether they are mirrored.

    Args:
        batch (dict): From :func:`group_loader`.
        sizes (torch.Tensor): The sizes (H, W) of all photos :math:`(M, 2)`.

    Returns:
        Rows :math:`(B)`, boxes (x1, y1, x2, y2) :math:`(B, 4)` and flips :math:`(B)`, on the CPU:
        the arguments of :meth:`AttentionStore.read <pgnn_geo.labels.AttentionStore.read>`.
    """
    index, flip = batch["index"].cpu(), batch["flip"].cpu()
    if "crop" in batch:
        return index, batch["crop"].cpu(), flip
    height, width = sizes[index].T
    return index, batch["window"].cpu() * torch.stack([width, height, width, height], dim=1), flip


def with_boxes(batch: dict[str, Any], boxes: NodeBoxes | None, features: Tensor) -> dict[str, Any]:
    """Add :obj:`boxes` and :obj:`box_class` to a batch: those in what its feature maps show.

    Args:
        batch (dict): From :func:`group_loader`.
        boxes (NodeBoxes, optional): The boxes of all photos; without them nothing is added.
        features (torch.Tensor): Feature maps :math:`(B, C, h, w)` of the batch.
    """
    if boxes is None:
        return batch
    index, crop, flip = photo_view(batch, boxes.sizes)
    shown, label = boxes.shown(index, features.shape[2:], crop, flip, features.device)
    return {**batch, "boxes": shown, "box_class": label}


def graph_of(batch: dict[str, Any]) -> dict[str, Any]:
    """The arguments of :meth:`PGNN.forward_features` that say what its graphs are made of."""
    return {
        name: batch[name] for name in ("group", "node_class", "boxes", "box_class") if name in batch
    }


def empty_store(path: Path, dataset: TaggedDataset, **options: Any) -> AttentionStore:
    """Make the store of a data set's maps, see :class:`~pgnn_geo.labels.AttentionStore`."""
    sizes = torch.stack([dataset[i]["size"] for i in range(len(dataset))])
    return AttentionStore(path, dataset.image_ids, sizes, tags_of(dataset), **options)
