"""Completion: between the two parts of stage 1, the network's maps are propagated and kept."""

import shutil
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.features.views import Progress, no_progress
from pgnn_geo.graph.node_boxes import NodeBoxes
from pgnn_geo.labels import AttentionStore
from pgnn_geo.labels.maps import MapConfig, attention_maps
from pgnn_geo.nn import PGNN
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.stems import empty_store, tags_of


class MapCompletion(Callback):
    """Gives an :class:`~pgnn_geo.training.attention.AttentionModule` its reference maps.

    Before epoch :obj:`epochs`, the maps of all photos are inferred, propagated and written to an
    :class:`~pgnn_geo.labels.AttentionStore` in :obj:`folder`. A training that was cut off after
    that reads them back.

    Args:
        dataset (TaggedDataset): The photos, with tags.
        epochs (int): Epochs on image tags alone.
        maps (MapConfig): How the maps are inferred and propagated.
        folder (Path): Folder of the store.
        stem_folder (Path): Where outputs of frozen stages are kept.
        progress (callable, optional): Progress display.
        node_classes (bool): Whether the graph's nodes have classes from then on.
            (default: :obj:`False`)
        boxes (NodeBoxes, optional): The photos' boxes, if they are the graph's nodes.
            (default: :obj:`None`)
        ranks (Ranks): The processes that share the photos. (default: this one alone)
    """

    def __init__(
        self,
        dataset: TaggedDataset,
        epochs: int,
        maps: MapConfig,
        folder: Path,
        stem_folder: Path,
        progress: Progress = no_progress,
        node_classes: bool = False,
        boxes: NodeBoxes | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.dataset = dataset
        self.epochs = epochs
        self.maps = maps
        self.folder = folder
        self.stem_folder = stem_folder
        self.progress = progress
        self.node_classes = node_classes
        self.boxes = boxes
        self.ranks = ranks

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make or open the store when its time has come."""
        if trainer.current_epoch < self.epochs or pl_module.references is not None:
            return
        path, model = self.folder / "maps.bin", pl_module.model
        assert isinstance(model, PGNN)
        if not self.ranks.first(path.exists):
            maps = self._maps(model)
            self.ranks.first(lambda: self._write(maps))
        pl_module.references = AttentionStore.open(path)
        if self.node_classes:
            model.set_node_classes("maps")

    def _maps(self, model: PGNN) -> list[Tensor]:
        scratch = self.folder.parent  # gigabytes for a large data set: not the system's folder
        if self.ranks.size > 1:  # batch norms have seen other photos in each process
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        return attention_maps(
            model,
            self.dataset,
            self.maps,
            self.stem_folder,
            scratch,
            self.progress,
            self.boxes,
            ranks=self.ranks,
        )

    def _write(self, maps: list[Tensor]) -> None:
        tags = tags_of(self.dataset)
        work = self.folder.with_name(f".{self.folder.name}.unfinished")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        store = empty_store(work / "maps.bin", self.dataset)
        for row, own in enumerate(maps):
            dense: Tensor = own.new_zeros(1, store.num_classes, *own.shape[1:])
            dense[0, tags[row].bool()] = own
            store.write([row], dense)
        store.flush()
        work.rename(self.folder)
