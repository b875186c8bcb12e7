"""Boxes from end to end: propose, train a detector on image tags, detect, measure; resumes."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch import seed_everything
from rich.table import Table
from torch import Tensor

from pgnn_geo.boxes.adjuster import BoxAdjuster
from pgnn_geo.boxes.auxiliary import AuxiliaryBoxes
from pgnn_geo.boxes.box_file import cached_boxes
from pgnn_geo.boxes.evaluation import evaluate_boxes, proposal_recall, true_boxes
from pgnn_geo.boxes.inference import DetectionConfig, DetectorBoxes
from pgnn_geo.boxes.model_file import (
    AdjusterFile,
    load_adjuster,
    load_detector,
    save_adjuster,
    save_detector,
)
from pgnn_geo.boxes.proposals import ProposalCache, ProposalConfig
from pgnn_geo.boxes.training.adjuster import AdjusterTrainingConfig, train_adjuster
from pgnn_geo.boxes.training.detector import DetectorTrainingConfig, train_detector
from pgnn_geo.boxes.weak_detector import WeakDetector
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.io.files import write_json
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.model_folder import model_digest
from pgnn_geo.io.run_folder import claim_folder, console, progress, timed
from pgnn_geo.nn.backbones import BackboneSource
from pgnn_geo.options import Arguments
from pgnn_geo.precision import default_device
from pgnn_geo.ranks import ALONE, Ranks
from pgnn_geo.training.preflight import find_problems, ledger_of, raise_problems

#: The arguments of a detector that can be chosen, and those of a box adjuster.
DETECTOR = Arguments(WeakDetector, skip=("num_classes", "sizes"))
ADJUSTER = Arguments(BoxAdjuster)


@dataclass(frozen=True)
class DetectConfig:
    """Everything that decides the outcome of :func:`detect`.

    Args:
        data (DataConfig): The photos to train on and to detect in.
        network (dict): Arguments of the network, a :class:`~pgnn_geo.boxes.WeakDetector`.
        proposals (ProposalConfig): How boxes are proposed, by selective search.
        train (DetectorTrainingConfig): Hyper-parameters of training.
        boxes (DetectionConfig): How boxes are inferred.
        adjuster (str, optional): The folder of a model that "adjuster" wrote, which moves the
            boxes; what is made with it is not made from tags alone.
        eval_split (str, optional): Split of VOC or Shapes to detect in as well, without using its
            tags; null for none.
    """

    data: DataConfig
    network: Annotated[dict[str, Any], DETECTOR] = field(default_factory=dict)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    train: DetectorTrainingConfig = field(default_factory=DetectorTrainingConfig)
    boxes: DetectionConfig = field(default_factory=DetectionConfig)
    adjuster: str | None = None
    eval_split: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", DETECTOR.complete(self.network))

    @property
    def source(self) -> BackboneSource:
        """Where the backbone comes from."""
        return BackboneSource(self.network["backbone"], self.network["weights"])

    @property
    def measured(self) -> DataConfig | None:
        """Return the other photos to detect in, if there are any."""
        if self.eval_split is None or not self.data.has_splits:
            return None
        return replace(self.data, split=self.eval_split)


def detect(
    config: DetectConfig, out: Path, cache: Path | None = None, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Do the whole job in folder :obj:`out`; steps that are done are not done again.

    Leaves :obj:`model`, :obj:`boxes.json` (COCO results; of tagged classes only),
    :obj:`metrics.json` and, with an :obj:`eval_split`, :obj:`boxes-SPLIT.json` (of all classes).

    Args:
        config (DetectConfig): What to do.
        out (Path): The folder; made if it is missing.
        cache (Path, optional): Where proposals are kept, which several runs may share; in
            :obj:`out` if not given.
        ranks (Ranks): The processes that share the photos, and every batch of the training.
            (default: this one alone)

    Returns:
        The content of :obj:`metrics.json`.

    Raises:
        InputError: If photos, tags, weights or the adjuster cannot be used, or if :obj:`out` holds
            a run of another configuration.
    """
    if done := ranks.first(lambda: _started(config, out)):
        return done
    ranks.check_shared(out / "config.json")
    adjuster = None if config.adjuster is None else load_adjuster(config.adjuster)
    dataset, folder = config.data.build(), cache or out / "proposals"
    proposals = propose(dataset, folder, config.proposals, ranks)
    _train(config, dataset, proposals, adjuster, out, ranks)
    metrics: dict[str, Any] = {
        "boxes": _boxes(config, config.data, proposals, adjuster, out, True, ranks)
    }
    if config.measured is not None:
        others = propose(config.measured.build(), folder, config.proposals, ranks)
        metrics["eval"] = _boxes(config, config.measured, others, adjuster, out, False, ranks)
    metrics |= {
        "classes": list(dataset.classes),
        "seed": config.train.seed,
        "supervision": load_detector(detector_path(out)).ledger.to_list(),
    }
    if ranks.is_first:
        write_json(out / "metrics.json", metrics)
        shutil.rmtree(out / "stems", ignore_errors=True)  # gigabytes that only training needs
    _show(metrics)
    console.print(f"boxes {out}/boxes.json, detector {detector_path(out)}")
    return metrics


def _started(config: DetectConfig, out: Path) -> dict[str, Any] | None:
    """Check everything and claim the folder; return what a finished run has measured."""
    if (out / "config.json").is_file():
        claim_folder(out, config)
    if (out / "metrics.json").is_file():
        metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
        console.print(f"{out} is done; choose another --out to start anew.")
        _show(metrics)
        return metrics
    with timed("check"):
        if config.adjuster is not None:
            load_adjuster(config.adjuster)
        problems = find_problems(config.data, config.source)
        if config.measured is not None:
            problems += find_problems(config.measured, config.source)
        raise_problems(list(dict.fromkeys(problems)))
    claim_folder(out, config)  # not before: a mistake leaves nothing behind
    return None


def detector_path(out: Path) -> Path:
    """Return where :func:`detect` leaves its detector in the folder :obj:`out`."""
    return _model_path(out, "detector.pt")


def _model_path(out: Path, old: str) -> Path:
    """Return the folder of the model, or the file of a version up to 0.2.0 if that is there."""
    return out / old if (out / old).is_file() else out / "model"


def propose(
    dataset: TaggedDataset, folder: Path, config: ProposalConfig, ranks: Ranks = ALONE
) -> list[Tensor]:
    """Return the proposals of every photo, computed where they are not in :obj:`folder` yet."""
    with timed("proposals"):
        cache = ProposalCache(folder, dataset, config).fill(progress=progress, ranks=ranks)
        return [cache(image_id) for image_id in dataset.image_ids]


@dataclass(frozen=True)
class AdjusterConfig:
    """Everything that decides the outcome of :func:`learn_adjuster`.

    Args:
        annotations (str): COCO file of annotations; the classes in it do not matter, see
            :class:`~pgnn_geo.boxes.AuxiliaryBoxes`.
        images (str): Folder of its photos.
        network (dict): Arguments of the network, a :class:`~pgnn_geo.boxes.BoxAdjuster`.
        train (AdjusterTrainingConfig): Hyper-parameters of training.
    """

    annotations: str
    images: str
    network: Annotated[dict[str, Any], ADJUSTER] = field(default_factory=dict)
    train: AdjusterTrainingConfig = field(default_factory=AdjusterTrainingConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", ADJUSTER.complete(self.network))

    @property
    def source(self) -> BackboneSource:
        """Where the backbone comes from."""
        return BackboneSource(self.network["backbone"], self.network["weights"])


def learn_adjuster(config: AdjusterConfig, out: Path, ranks: Ranks = ALONE) -> Path:
    """Train a box adjuster into folder :obj:`out/model`, unless it is there; return that path.

    Args:
        config (AdjusterConfig): What to do.
        out (Path): The folder; made if it is missing.
        ranks (Ranks): The processes that share every batch. (default: this one alone)

    Raises:
        InputError: If annotations, photos or weights cannot be used, or if :obj:`out` holds a run
            of another configuration.
    """
    path = _model_path(out, "adjuster.pt")

    def is_there() -> bool:
        if (out / "config.json").is_file():
            claim_folder(out, config)
        if path.exists():
            return True
        with timed("check"):
            photos = AuxiliaryBoxes(config.annotations, config.images)
            raise_problems(photos.check() + find_problems(None, config.source))
        claim_folder(out, config)
        return False

    if ranks.first(is_there):
        return path
    ranks.check_shared(out / "config.json")
    dataset = AuxiliaryBoxes(config.annotations, config.images)
    with timed("train adjuster"):
        seed_everything(config.train.seed, workers=True, verbose=False)
        adjuster = BoxAdjuster(**config.network)
        train_adjuster(
            adjuster,
            dataset,
            dataset.boxes,
            out,
            config.train,
            out / "stems",
            console=console,
            progress=progress,
            ranks=ranks,
        )
        entry = config.source.pretrained()
        ledger = SupervisionLedger(
            weights=None if entry is None else str(entry), boxes=f"auxiliary ({dataset.name})"
        )
        ranks.first(lambda: save_adjuster(path, adjuster, ledger))
    if ranks.is_first:
        shutil.rmtree(out / "stems", ignore_errors=True)
    return path


def _train(
    config: DetectConfig,
    dataset: TaggedDataset,
    proposals: Sequence[Tensor],
    adjuster: AdjusterFile | None,
    out: Path,
    ranks: Ranks,
) -> None:
    """Train the detector into folder :obj:`out/model`, unless it is there."""
    path = detector_path(out)
    if ranks.first(path.exists):
        return
    with timed("train detector"):
        seed_everything(config.train.seed, workers=True, verbose=False)
        network = WeakDetector(num_classes=len(dataset.classes), **config.network)
        train_detector(
            network,
            dataset,
            proposals,
            out,
            config.train,
            None if adjuster is None else adjuster.model,
            out / "stems",
            console=console,
            progress=progress,
            ranks=ranks,
        )
        ledger = ledger_of(config.source, dataset, config.data.name)
        if adjuster is not None:
            ledger = ledger.merged(adjuster.ledger)
        ranks.first(lambda: save_detector(path, network, dataset.classes, ledger))


def _boxes(
    config: DetectConfig,
    data: DataConfig,
    proposals: Sequence[Tensor],
    adjuster: AdjusterFile | None,
    out: Path,
    use_tags: bool,
    ranks: Ranks,
) -> dict[str, Any]:
    """Write the boxes of photos, and return what there is to say of them."""
    dataset = data.build()
    model, _, ledger = load_detector(detector_path(out))
    model.to(default_device())
    path = out / ("boxes.json" if use_tags else f"boxes-{data.split}.json")
    with timed(f"detect {data.name}"):
        source = DetectorBoxes(
            model,
            dataset,
            proposals,
            ledger,
            ranks,
            config=config.boxes,
            use_tags=use_tags,
            adjuster=None if adjuster is None else adjuster.model,
            stem_folder=out / "stems" if use_tags else None,
            progress=progress,
        )
        made_from = {
            "detector": model_digest(detector_path(out)),
            "boxes": asdict(config.boxes),
            "tags": use_tags,
        }
        boxes = cached_boxes(path, source, dataset, made_from, ranks=ranks)
    said: dict[str, Any] = {"photos": data.name, "images": len(dataset), "tags_known": use_tags}
    if not data.has_masks():
        return said

    def measured() -> dict[str, Any]:
        truth = true_boxes(data.build(with_masks=True), progress=progress)
        scores = evaluate_boxes(boxes, truth, dataset.classes)
        proposed = dict(zip(dataset.image_ids, proposals, strict=True))
        recall = proposal_recall(
            [proposed[i] for i in truth], [own.boxes for own in truth.values()]
        )
        return {**scores.to_dict(), "proposal_recall": recall}

    with timed("measure"):
        return {**said, **ranks.first(measured)}


def _show(metrics: dict[str, Any]) -> None:
    """Print CorLoc and average precision, in per cent, and what they were made from."""
    shown = [metrics[name] for name in ("boxes", "eval") if "per_class" in metrics.get(name, {})]
    if not shown:
        console.print("No true masks were given, so the boxes are not measured.")
    for scores in shown:
        known = "tags known" if scores["tags_known"] else "tags unknown"
        title = f"boxes, {scores['photos']}, {scores['images']} images, {known}, per cent"
        table = Table(title=title)
        for column in ("class", "CorLoc", "AP 0.5"):
            table.add_column(column, justify="left" if column == "class" else "right")
        for name, row in scores["per_class"].items():
            table.add_row(name, _percent(row["corloc"]), _percent(row["ap"]))
        table.add_section()
        table.add_row("mean", _percent(scores["corloc"]), _percent(scores["map"]))
        console.print(table)
        console.print(f"recall of the proposals: {_percent(scores['proposal_recall'])}")
    console.print("supervision: " + "; ".join(metrics["supervision"]))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
