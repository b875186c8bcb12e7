"""Label images of tagged photos, made by a model that knows how it makes them."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgnn_geo.app.added_tags import write_added_tags
from pgnn_geo.app.config import LabelConfig, label_config_of, label_defaults
from pgnn_geo.app.explained import (
    choose_sample,
    explain_attention,
    explain_propagation,
    write_explained,
)
from pgnn_geo.boxes.patches import read_boxes
from pgnn_geo.boxes.photo_boxes import PhotoBoxes
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.datasets.listing import first_of
from pgnn_geo.errors import InputError
from pgnn_geo.features import FeatureBank, resident
from pgnn_geo.io.checkpoint import load_attention_model
from pgnn_geo.io.files import (
    RESULT_MARK,
    first_difference,
    inside,
    mark_results,
    remove_unfinished,
    write_json,
)
from pgnn_geo.io.ledger import SupervisionLedger
from pgnn_geo.io.masks import save_maps, save_mask
from pgnn_geo.io.model_folder import model_digest, model_kind, sha256_of
from pgnn_geo.io.run_folder import progress, timed
from pgnn_geo.labels.evidence import StepName
from pgnn_geo.labels.frozen import EvidenceModel
from pgnn_geo.labels.labeller import Labeller
from pgnn_geo.labels.maps import attention_maps
from pgnn_geo.labels.propagation import Propagated
from pgnn_geo.labels.review import Reviewed, label_confidence, write_review
from pgnn_geo.labels.seeds import refined_labels
from pgnn_geo.nn import PGNN
from pgnn_geo.precision import default_device
from pgnn_geo.ranks import ALONE, Ranks

#: What lies beside label images for a report: the maps, those of the first step (the CAM), and the
#: edges of a sample of photos.
MAPS, CAM, EXPLAINED = "maps.npy", "cam.npy", "explained.json"


@dataclass(frozen=True)
class _Source:
    """What makes maps, ready to make them."""

    classes: tuple[str, ...]
    ledger: SupervisionLedger
    labels: LabelConfig
    record: dict[str, Any]  #: what labels.json says of it
    #: maps, what explains them, and the tags that they are of where tags were added
    maps: Callable[[], tuple[list[Tensor], list[dict[str, Any]], Tensor | None]]


def label(
    checkpoint: Path,
    dataset: TaggedDataset,
    out: Path,
    maps: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    boxes: Path | None = None,
    step: StepName | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write the pseudo-labels of a model as :obj:`out/ID.png`, unless all are there.

    :obj:`out/maps.npy` are the attention maps, see :func:`~pgnn_geo.io.masks.save_maps`,
    :obj:`out/cam.npy` the class activation maps that a model of evidence began with,
    :obj:`out/added_tags.csv` has the tags that they are of besides those of the photos, where
    absence is not believed (:mod:`pgnn_geo.labels.absence`), :obj:`out/review.csv` says which
    labels to look at first, see :func:`~pgnn_geo.labels.review.label_confidence`,
    :obj:`out/explained.json` has the edges of a sample of photos for the report, and
    :obj:`out/labels.json`, written last, says what they were made from.

    Args:
        checkpoint (Path): The folder of a model, of a trained network or of evidence.
        dataset (TaggedDataset): Photos with tags.
        out (Path): The folder; made if it is missing.
        maps (mapping, optional): How a trained model's attention maps are inferred: values that
            take the place of those of the :class:`~pgnn_geo.labels.maps.MapConfig` that the model
            was saved with.
        labels (mapping, optional): How label images are made from them: in the same way, of the
            :class:`~pgnn_geo.app.config.LabelConfig`.
        cache (Path, optional): Where features of the photos, or outputs of frozen stages, are kept
            for reuse.
        boxes (Path, optional): COCO results with the photos' boxes, for a model whose patches they
            are.
        step (str, optional): Of a model of evidence: the step whose maps are taken, see
            :meth:`EvidenceModel.maps <pgnn_geo.labels.frozen.EvidenceModel.maps>`; the last by
            default.
        ranks (Ranks): The processes that share the photos. (default: this one alone)

    Raises:
        InputError: If the model was trained for other classes or other patches, a setting is not
            of such a model, if :obj:`out` holds labels made from something else or cannot be
            written, or if the refinement cannot be had.
    """
    own = out / ".features"  # kept until the labels are there: what was cut off goes on with them
    if model_kind(checkpoint) == "evidence model":
        source = _evidence(checkpoint, dataset, maps, labels, cache or own, out, boxes, step, ranks)
    else:
        source = _network(checkpoint, dataset, maps, labels, cache, out, boxes, step, ranks)
    if source.classes != dataset.classes:
        raise InputError(
            f"{checkpoint} knows the classes {', '.join(source.classes)}; "
            f"the data set has {', '.join(dataset.classes)}."
        )
    source.labels.build_refinement()  # which raises now, not after the maps
    record: dict[str, Any] = {
        **source.record,
        "images": len(dataset),
        "classes": source.classes,
        "labels": asdict(source.labels),
        "supervision": source.ledger.to_dict(),
    }
    record = json.loads(json.dumps(record))
    if ranks.first(lambda: _is_done(out, record)):
        if ranks.is_first:
            shutil.rmtree(own, ignore_errors=True)  # of one that was killed right before this
        return out
    ranks.check_shared(out / RESULT_MARK)
    with timed(f"label {out}"):
        attention, explained, tags = source.maps()
        if tags is not None:
            ranks.first(partial(write_added_tags, out, dataset, tags))
            dataset = dataset.with_tags(tags)
        photos = ranks.share(range(len(dataset)))
        masks = label_images(dataset, attention, source.labels, photos, ranks.local_size)
        parts = ranks.gather(_write(out, dataset, photos, masks))
        if ranks.is_first:
            areas = [area for part in parts for area in part]
            write_review(out / "review.csv", _reviewed(dataset, attention, areas, source.labels))
            save_maps(out / MAPS, attention)
            if explained:
                write_explained(out / EXPLAINED, explained)
            write_json(out / "labels.json", record)
    ranks.wait()
    if ranks.is_first:
        shutil.rmtree(own, ignore_errors=True)
    return out


def _is_done(out: Path, record: dict[str, Any]) -> bool:
    """Whether all labels are there; if not, the folder is made ready for them."""
    done = out / "labels.json"
    if done.is_file():
        if difference := first_difference(json.loads(done.read_text()), record):
            raise InputError(
                f"{out} holds labels made from something else ({difference}). "
                "Choose another folder."
            )
        return True
    try:
        remove_unfinished(out)
        mark_results(out)
    except OSError as error:
        raise InputError(f"Output folder {out} cannot be written: {error}") from error
    return False


def _write(
    out: Path, dataset: TaggedDataset, photos: Sequence[int], masks: Iterable[Tensor]
) -> list[Tensor]:
    """Write the label images of photos and return the share of each label in each.

    A name that is too long stops no other.
    """
    too_long, areas = [], []
    for index, mask in zip(photos, masks, strict=True):
        image_id = dataset.image_ids[index]
        count = mask.flatten().bincount(minlength=len(dataset.classes) + 1)
        areas.append(count / mask.numel())
        try:
            save_mask(inside(out, f"{image_id}.png"), mask)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise InputError(f"Output folder {out} cannot be written: {error}") from error
            too_long.append(image_id)
    if too_long:
        raise InputError(
            f"All label images but those of names that are too long for {out} are written; "
            f"rename these photos: {first_of(too_long)}"
        )
    return areas


def _reviewed(
    dataset: TaggedDataset, attention: list[Tensor], areas: list[Tensor], config: LabelConfig
) -> Iterator[Reviewed]:
    """Yield how sure the label of every photo and tagged class is."""
    assert dataset.tags is not None  # maps are of tags
    for i, image_id in enumerate(dataset.image_ids):
        sure = label_confidence(attention[i], config.background, config.power)
        for k, confidence in zip(dataset.tags[i].nonzero()[:, 0], sure.tolist(), strict=True):
            yield Reviewed(image_id, dataset.classes[k], confidence, float(areas[i][k + 1]))


def _evidence(
    checkpoint: Path,
    dataset: TaggedDataset,
    maps: Mapping[str, Any] | None,
    labels: Mapping[str, Any] | None,
    cache: Path,
    out: Path,
    boxes: Path | None,
    step: StepName | None,
    ranks: Ranks,
) -> _Source:
    if boxes is not None or maps:
        raise InputError(
            f"{checkpoint} is a model of evidence, whose maps are made one way: leave out --boxes "
            "and --maps."
        )
    labeller = Labeller.load(checkpoint)
    last = labeller.model.config.last_step
    step = step or last
    if dataset.tags is None:
        raise InputError("Labelling needs image tags; this split has none.")
    tags, device = dataset.tags, default_device()
    adds = labeller.model.absence is not None and step == last

    def make() -> tuple[list[Tensor], list[dict[str, Any]], Tensor | None]:
        bank, model = labeller.to(device).bank(dataset, cache, progress, ranks), labeller.model
        features = resident(bank, device)
        shown = tags
        if adds:
            shown = model.with_missing(features, tags, device, ranks).to(tags)
        if step == last:  # one more pass, without propagation: next to nothing beside the labels
            cam = model.maps(features, shown, "evidence", device, ranks).maps
            ranks.first(lambda: save_maps(out / CAM, [cam]))
            del cam
        rows = model.maps(features, shown, step, device, ranks).maps
        explained = _explained(model, bank, dataset, shown, ranks) if step == last else []
        maps = list(rows.split(shown.bool().sum(dim=1).tolist()))
        return maps, explained, shown if adds else None

    return _Source(
        labeller.classes,
        labeller.ledger,
        label_config_of(labeller.labels.get(step), step == "evidence", labels),
        {"model": model_digest(checkpoint), "step": step},
        make,
    )


def _explained(
    model: EvidenceModel, bank: FeatureBank, dataset: TaggedDataset, tags: Tensor, ranks: Ranks
) -> list[dict[str, Any]]:
    """What explains a sample of photos; one group at a time is in memory."""
    sample, entries, device = choose_sample(tags), list[dict[str, Any]](), default_device()
    for group, label in ranks.share([*zip(sample.groups, sample.labels, strict=True)]):
        members = [sample.photos[i] for i in group]
        photos = torch.tensor(members)
        source = model.before_propagation(bank[photos], tags[photos], device)
        places, chosen = [range(len(members))], dataset.subset(members)
        entries += explain_propagation(source, places, [label], chosen, model.prototypes)
    return [entry for part in ranks.gather(entries) for entry in part]


def _network(
    checkpoint: Path,
    dataset: TaggedDataset,
    maps: Mapping[str, Any] | None,
    labels: Mapping[str, Any] | None,
    cache: Path | None,
    scratch: Path,
    boxes: Path | None,
    step: StepName | None,
    ranks: Ranks,
) -> _Source:
    if step is not None:
        raise InputError(f"{checkpoint} is a trained network, which has no steps; leave out --step")
    model, classes, ledger, labelling = load_attention_model(checkpoint)
    map_config, label_config = label_defaults(model, labelling, maps, labels)
    record = {"model": model_digest(checkpoint), "maps": asdict(map_config)}
    patches = _patches(model, checkpoint, boxes, dataset) if classes == dataset.classes else None
    if patches is not None:
        ledger = ledger.merged(patches.ledger)
    if boxes is not None:
        record["boxes"] = sha256_of(boxes)

    def make() -> tuple[list[Tensor], list[dict[str, Any]], Tensor | None]:
        model.to(default_device())
        explained: list[dict[str, Any]] = []
        sample = choose_sample(dataset.tags if dataset.tags is not None else torch.zeros(0, 1))

        def observe(seen: Propagated) -> None:
            if not explained:  # the first scale
                groups = [[sample.photos[i] for i in group] for group in sample.groups]
                own, labels = ranks.share(groups), ranks.share(sample.labels)
                parts = ranks.gather(explain_propagation(seen, own, labels, dataset))
                explained.extend(entry for part in parts for entry in part)

        maps = attention_maps(
            model, dataset, map_config, cache, scratch, progress, patches, observe, ranks
        )
        if len(model.blocks) and model.builder.grid is not None and ranks.is_first:
            chosen = dataset.subset(sample.photos)
            explained += explain_attention(model, chosen, sample, map_config)
        return maps, explained, None

    return _Source(classes, ledger, label_config, record, make)


def _patches(
    model: PGNN, checkpoint: Path, boxes: Path | None, dataset: TaggedDataset
) -> PhotoBoxes | None:
    """Return the boxes that a model needs for its patches, if it does."""
    if model.needs_boxes and boxes is None:
        raise InputError(
            f"The patches of {checkpoint} are boxes: pass the photos' with --boxes FILE (COCO "
            "results; those of a run are its boxes.json)."
        )
    if boxes is None:
        return None
    if not model.needs_boxes:
        raise InputError(f"The patches of {checkpoint} are no boxes; leave out --boxes {boxes}.")
    return read_boxes(boxes, dataset)


def label_images(
    dataset: TaggedDataset,
    attention: list[Tensor],
    config: LabelConfig,
    photos: Sequence[int] | None = None,
    sharing: int = 1,
) -> Iterator[Tensor]:
    """Yield the label image of photos at their own size; a CRF runs on all cores.

    Args:
        dataset (TaggedDataset): Photos with tags.
        attention (list of Tensor): Maps of their tagged classes, see
            :func:`~pgnn_geo.labels.attention_maps`.
        config (LabelConfig): How label images are made from them.
        photos (sequence of int, optional): Which photos; all if not given.
        sharing (int): Processes that do the same on this machine. (default: :obj:`1`)
    """
    wanted = range(len(dataset)) if photos is None else photos
    device = default_device()

    def shown() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for index in progress(wanted, "write labels", len(wanted)):
            item = dataset[index]
            tagged = item["tags"].nonzero()[:, 0] + 1
            image = item["image"].as_subclass(Tensor)
            yield image.to(device), attention[index].to(device), tagged.to(device)

    refinement = config.build_refinement(workers=max(1, (os.cpu_count() or 1) // sharing))
    with refinement or nullcontext():
        for label in refined_labels(shown(), refinement, config.background, config.power):
            yield label.cpu()
