"""Features and labels of a data set in processes that share the work, on the clock."""

from __future__ import annotations

import os
import time
from multiprocessing import set_start_method
from pathlib import Path

import torch

from pgnn_geo.app.labelling import label
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.features import frozen_features
from pgnn_geo.io.files import write_json
from pgnn_geo.io.run_folder import console
from pgnn_geo.labels.labeller import Labeller
from pgnn_geo.ranks import join_ranks


def work(place: dict[str, str], data: DataConfig, photos: int, model: Path, out: Path) -> None:
    """Do it as one of several processes of a thread each; the first one writes the seconds."""
    os.environ |= place
    torch.set_num_threads(1)
    set_start_method("fork", force=True)  # of loaders, as in a command
    console.quiet = True
    ranks = join_ranks()
    dataset, labeller = data.build(), Labeller.load(model)
    dataset = dataset.subset(range(min(photos, len(dataset))))
    stages = {
        "features": lambda: frozen_features(
            labeller.backbone, dataset, out, labeller.features, ranks=ranks
        ),
        "labelling": lambda: label(model, dataset, out / "labels", cache=out, ranks=ranks),
    }
    seconds = {}
    for stage, do in stages.items():
        ranks.wait()
        begin, processor = time.perf_counter(), time.process_time()
        do()
        busiest = max(ranks.gather(time.process_time() - processor))
        seconds[stage] = {"clock": time.perf_counter() - begin, "processor": busiest}
    if ranks.is_first:
        write_json(out / "seconds.json", seconds)
