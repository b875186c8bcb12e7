"""Mutual complement in training: label images are rewritten by what the network has learnt."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pgnn_geo.datasets import Item, TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features.views import Progress, no_progress
from pgnn_geo.io.files import inside, mark_results, write_json
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import save_mask
from pgnn_geo.labels.mutual import mutual_complement
from pgnn_geo.metrics import ConfusionMatrix
from pgnn_geo.nn.deeplab import DeepLabV2
from pgnn_geo.nn.photo_views import evaluating, photo_views
from pgnn_geo.nn.view_average import ViewAverage
from pgnn_geo.precision import autocast
from pgnn_geo.training.segmentation import SegmentationData, SegmentationModule
from pgnn_geo.training.stem_crops import StemCrops

MutualRule = Literal["literal", "tags"]

_RECORD = "changed.json"


class MutualComplement(Callback):
    """Rewrites the label images of a training after each epoch; the next one learns those.

    After epoch 3 every training photo is predicted as a whole,
    :func:`~pgnn_geo.labels.mutual_complement` is applied to the labels that the epoch learnt, and
    the result is written as :obj:`epoch-003/ID.png`. :obj:`epoch-003/labels.json` says what they
    were made from, and :obj:`epoch-003/changed.json`, written last, how many pixels changed, and
    the scores of the labels where true masks are given. The labels that the training began with
    are not touched. Each rank does its share of the photos. With :obj:`augment="window"` photos are
    predicted from the frozen stages' outputs that training keeps, at its stride: a fraction of the
    time.

    Args:
        data (SegmentationData): The training's photos and labels; their labels are replaced.
        folder (Path): Where the folders :obj:`epoch-001` and so on go.
        rule (str): :obj:`"literal"`, or :obj:`"tags"` to let in no class that the photo is not
            tagged with. (default: :obj:`"literal"`)
        start (int): First epoch, counted from 1, after which labels are rewritten.
            (default: :obj:`1`)
        confidence (float, optional): Probability from which on a prediction rewrites a label; by
            default every one does.
        truth (TaggedDataset, optional): The same photos with true masks, for measuring only.
        ledger (SupervisionLedger, optional): What the training is made from.
        progress (callable, optional): See :data:`~pgnn_geo.features.Progress`.

    Raises:
        InputError: If an argument is out of range, tags are wanted and missing, or the truth is of
            other photos. On resuming: if the labels of the last epoch are not there.
    """

    def __init__(
        self,
        data: SegmentationData,
        folder: Path,
        rule: MutualRule = "literal",
        start: int = 1,
        confidence: float | None = None,
        truth: TaggedDataset | None = None,
        ledger: SupervisionLedger | None = None,
        progress: Progress = no_progress,
    ) -> None:
        if start < 1:
            raise InputError(f"'start' must be 1 or more, got {start}.")
        if confidence is not None and not 0 < confidence <= 1:
            raise InputError(f"'confidence' must lie in (0, 1], got {confidence}.")
        if rule == "tags" and data.dataset.tags is None:
            raise InputError("The rule 'tags' needs image tags; this split has none.")
        if truth is not None and not set(truth.image_ids) <= set(data.dataset.image_ids):
            raise InputError("The true masks must be of the training photos, or of some of them.")
        self.data = data
        self.folder = folder
        self.rule = rule
        self.start = start
        self.confidence = confidence
        self.truth = truth
        self._true = {} if truth is None else {i: n for n, i in enumerate(truth.image_ids)}
        self.ledger = ledger or SupervisionLedger()
        self.progress = progress
        self.epoch = 0  # after which the labels of now were written; 0 is before the first

    def state_dict(self) -> dict[str, Any]:
        """Return which labels the next epoch learns."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the labels of the last epoch that a checkpoint was written after."""
        if state_dict["epoch"]:
            self._use(state_dict["epoch"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rewrite the labels of every photo."""
        epoch = trainer.current_epoch + 1
        if epoch < self.start:
            return
        assert isinstance(pl_module, SegmentationModule)
        folder = self.epoch_folder(epoch)
        if trainer.is_global_zero:  # of the same epoch of a run that was cut off right here
            (folder / _RECORD).unlink(missing_ok=True)
            mark_results(folder)
        photos = self.data.dataset.with_transform(None)
        config, network = self.data.config, pl_module.network
        matrix = ConfusionMatrix(len(photos.classes), photos.classes)
        counts = torch.zeros(2, dtype=torch.long)  # pixels, and those that changed
        shard = range(trainer.global_rank, len(photos), trainer.world_size)
        stems = self.data.stem_crops
        # Training may be at another stride than prediction.
        stride = None if stems is not None else network.config.get("output_stride")
        if torch.distributed.is_initialized():  # batch norms have seen other photos on each device
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, 0)
        progress = self.progress if trainer.is_global_zero else no_progress
        with (
            autocast(config.precision, pl_module.device),  # its converted weights are kept
            network.at_output_stride(stride),
        ):
            for index in progress(shard, f"labels of epoch {epoch}", len(shard)):
                item = photos[index]
                before = item["mask"].as_subclass(Tensor)
                if stems is None:
                    image, size = item["image"].as_subclass(Tensor), config.size
                    views = photo_views(network, image, precision=config.precision, side=size)
                else:
                    assert isinstance(network, DeepLabV2)  # which alone has stems
                    views = _stem_views(network, stems, index)
                after = self._complement(views, item, before)
                save_mask(inside(folder, f"{item['image_id']}.png"), after)
                counts += torch.tensor([after.numel(), (after != before).sum()])
                place = self._true.get(item["image_id"])
                if self.truth is not None and place is not None:
                    matrix.update(after, self.truth.read_mask(place), item["image_id"])
        matrix.all_reduce()
        counts = trainer.strategy.reduce(counts.to(pl_module.device), reduce_op="sum")
        pixels, changed = (int(count) for count in counts.tolist())
        trainer.strategy.barrier("labels")
        if trainer.is_global_zero:
            self._record(folder, epoch, matrix, {"pixels": pixels, "changed": changed})
        trainer.strategy.barrier("record")
        pl_module.log("changed", changed / pixels, sync_dist=True)
        if self.truth is not None:
            pl_module.log("labels_miou", matrix.compute().miou, sync_dist=True)
        self._use(epoch)

    def epoch_folder(self, epoch: int) -> Path:
        """Folder of the labels that are written after an epoch, counted from 1."""
        return self.folder / f"epoch-{epoch:03d}"

    def _complement(self, views: ViewAverage, item: Item, labels: Tensor) -> Tensor:
        tags = item["tags"] if self.rule == "tags" else None
        if self.confidence is None:
            return mutual_complement(labels, views.labels(labels.shape).cpu(), tags)
        sure, predicted = views.probabilities(labels.shape).max(dim=0)
        return mutual_complement(labels, predicted.cpu(), tags, sure.cpu(), self.confidence)

    def _record(
        self, folder: Path, epoch: int, matrix: ConfusionMatrix, counts: dict[str, int]
    ) -> None:
        classes = list(self.data.dataset.classes)
        made = {"classes": classes, "supervision": self.ledger.to_dict()}
        write_json(folder / "labels.json", made)
        options = {"rule": self.rule, "confidence": self.confidence}
        scores = {} if self.truth is None else {"scores": matrix.compute().to_dict()}
        write_json(folder / _RECORD, {"epoch": epoch, **options, **counts, **scores})

    def _use(self, epoch: int) -> None:
        folder = self.epoch_folder(epoch)
        if not (folder / _RECORD).is_file():
            raise InputError(
                f"The labels of epoch {epoch} are missing: {folder / _RECORD} is not there. Put "
                "the folder back, or choose another output folder to start anew."
            )
        dataset = self.data.dataset
        self.data.dataset = dataset.with_masks([folder / f"{i}.png" for i in dataset.image_ids])
        self.epoch = epoch


@torch.no_grad()
def _stem_views(network: DeepLabV2, stems: StemCrops, index: int) -> ViewAverage:
    """Predict a whole photo and its mirror image from what training keeps of them."""
    maps = []
    with evaluating(network):
        for flip in (False, True):
            stem = stems.whole(index, flip)[None].to(network.backbone.device)
            stem = stem.contiguous(memory_format=torch.channels_last)
            logits = network.head(network.backbone.trunk(stem))[0].float()
            maps.append(logits.flip(-1) if flip else logits)
    return ViewAverage(maps)
