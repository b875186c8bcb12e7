"""What trainings on boxes see: views of photos behind the frozen stages, and boxes in them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from pgnn_geo.boxes.image_boxes import boxes_to_view
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import FeatureBank
from pgnn_geo.features.views import Progress, View, no_progress
from pgnn_geo.nn.backbones import Backbone
from pgnn_geo.precision import Precision
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.stems import SeededItems, stem_banks


class BoxViewDataset(Dataset[Any]):
    """Photos passed through a backbone's frozen stages at several sizes, with boxes in them.

    The item of a photo and a size is drawn: mirrored or not, and which boxes if there are more
    than :obj:`max_boxes`, or than a third number of the key. It has the :obj:`stem`
    :math:`(C, h, w)`, :obj:`boxes` :math:`(r, 4)` in pixels of the view, the :obj:`side` of the
    view, :obj:`index` and, if there are, :obj:`tags`.

    Args:
        dataset (TaggedDataset): :math:`M` photos.
        boxes (sequence of Tensor): For each, boxes :math:`(r, 4)` in its own pixels.
        sizes (Tensor): Height and width of each photo :math:`(M, 2)`.
        banks (dict): The stems of all photos, by view.
        max_boxes (int, optional): Boxes of a photo that are seen at a time; all if not given.
        draw (callable, optional): What else is drawn: takes the boxes of an item and the side of
            the view, and returns what takes the place of :obj:`boxes`, or joins it.

    Raises:
        InputError: If there are not boxes for each photo.
    """

    def __init__(
        self,
        dataset: TaggedDataset,
        boxes: Sequence[Tensor],
        sizes: Tensor,
        banks: dict[View, FeatureBank],
        max_boxes: int | None = None,
        draw: Callable[[Tensor, int], dict[str, Tensor]] | None = None,
    ) -> None:
        if len(boxes) != len(dataset):
            raise InputError(f"Want boxes for each of {len(dataset)} photos, got {len(boxes)}.")
        self.dataset = dataset
        self.boxes = boxes
        self.sizes = sizes
        self.banks = banks
        self.max_boxes = max_boxes
        self.draw = draw

    @property
    def sides(self) -> list[int]:
        """The sizes of the views."""
        return list(dict.fromkeys(view.size for view in self.banks))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Any]:
        index, side, *most = key
        views = [view for view in self.banks if view.size == side]
        view = views[int(torch.randint(len(views), ()))]
        boxes = self.boxes[index]
        limit = most[0] if most else self.max_boxes
        if limit is not None and len(boxes) > limit:
            boxes = boxes[torch.randperm(len(boxes))[:limit]]
        height, width = self.sizes[index].tolist()
        item: dict[str, Any] = {
            "stem": self.banks[view][index],
            "boxes": boxes_to_view(boxes.float(), (0, 0, width, height), (side, side), view.flip),
            "side": side,
            "index": index,
        }
        if self.dataset.tags is not None:
            item["tags"] = self.dataset.tags[index]
        if self.draw is not None:
            item |= self.draw(item["boxes"], side)
        return item


class BoxViewData(LightningDataModule):
    """Batches of :class:`BoxViewDataset`, drawn anew in each epoch; one size in each batch.

    What is drawn depends on the seed and the epoch only, so that a training that was cut off
    continues as it would have done. Several processes share each batch; who is left without a
    photo sees the first one without boxes, which teaches nothing.

    Args:
        photos (BoxViewDataset): The photos.
        batch_size (int): Photos in a batch, of all processes together.
        seed (int): Seed of order, sizes and items.
        workers (int): Loader processes.
    """

    def __init__(self, photos: BoxViewDataset, batch_size: int, seed: int, workers: int) -> None:
        super().__init__()
        self.photos = photos
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the current epoch."""
        trainer = self.trainer
        assert trainer is not None
        sampler: DistributedSampler[Any] = DistributedSampler(self.photos, 1, 0, seed=self.seed)
        sampler.set_epoch(trainer.current_epoch)
        ranks = Ranks(trainer.global_rank, trainer.world_size)
        random = np.random.default_rng([self.seed % 2**64, trainer.current_epoch, 0, 1])
        keys = []
        for rows in torch.tensor(list(sampler)).split(self.batch_size):
            side = int(random.choice(self.photos.sides))
            seeds = random.integers(2**63, size=len(rows)).tolist()
            batch: list[tuple[tuple[int, ...], int]] = [
                ((row, side), seed) for row, seed in zip(rows.tolist(), seeds, strict=True)
            ]
            keys.append([*ranks.share(batch)] or [((int(rows[0]), side, 0), 0)])
        return DataLoader(
            SeededItems(self.photos),
            batch_sampler=keys,  # a list of batches is one
            num_workers=self.workers,
            collate_fn=collate_boxes,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # an iterator takes nothing from the chance of training
        )


def box_view_dataset(
    backbone: Backbone,
    dataset: TaggedDataset,
    boxes: Sequence[Tensor],
    stem_folder: Path,
    sides: Sequence[int],
    flip: bool = True,
    max_boxes: int | None = None,
    precision: Precision = "auto",
    progress: Progress = no_progress,
    draw: Callable[[Tensor, int], dict[str, Tensor]] | None = None,
    ranks: Ranks = ALONE,
) -> BoxViewDataset:
    """Run the frozen stages on every view, unless that is done, and return the views with boxes.

    Args:
        backbone (Backbone): Its frozen stages are run.
        dataset (TaggedDataset): :math:`M` photos.
        boxes (sequence of Tensor): For each, boxes :math:`(r, 4)` in its own pixels.
        stem_folder (Path): Where the outputs are kept.
        sides (sequence of int): Sides of the squares to which the photos are resized.
        flip (bool): Also the mirrored photos. (default: :obj:`True`)
        max_boxes, precision, progress, draw, ranks: See :class:`BoxViewDataset` and
            :func:`~pgnn_geo.features.stem_bank`.
    """
    views = [View(side, mirrored) for side in sides for mirrored in (False, True)[: 1 + flip]]
    banks = stem_banks(backbone, dataset, stem_folder, views, precision, progress, ranks)
    sizes = torch.tensor([dataset.photo_size(i) for i in range(len(dataset))])
    return BoxViewDataset(dataset, boxes, sizes, banks, max_boxes, draw)


def collate_boxes(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack stems and tags; what is of boxes stays a list, since photos differ in their number."""
    batch: dict[str, Any] = {
        name: torch.stack([item[name] for item in items])
        for name in ("stem", "tags")
        if name in items[0]
    }
    batch |= {
        name: [item[name] for item in items] for name in ("boxes", "offsets") if name in items[0]
    }
    batch["index"] = torch.tensor([item["index"] for item in items])
    batch["side"] = items[0]["side"]
    return batch
