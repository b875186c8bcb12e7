r"""What stage 1 of the frozen flow will take, before it is run: seconds, disk and memory.

Of :math:`M` photos with :math:`R` tags in all, of :math:`K` classes; features of :math:`C` channels
(the backbone's last two stages) on :math:`s \times s` positions, :math:`s` = size / stride; fitted
on :math:`g \times g` patches, :math:`g \le s`, in :math:`r_p` rounds of prototypes and :math:`r_c`
of the classifier, each of :math:`n` iterations on :math:`N = \min(M g^2, \text{positions})`
positions; :math:`o` is 1 with objectness, else 0.

Disk is known exactly: the bank of features has :math:`2 M C s^2` bytes, the maps beside the labels
:math:`R s^2`, the class activation maps as many, and each file its header. The label images come on
top.

Seconds are

.. math::
    \text{features} &= M t_f \\
    \text{evidence} &= M \bigl( (r_c + o (r_p + r_c)) \, t_w^g + (1 + 2 r_p + r_c + o (r_p + r_c))
    \, t_c^g \bigr) + r_c \, n \, N t_n + t_0 + M t_e \\
    \text{labels} &= M (t_w^s + t_c^s + t_l)

with the seconds that one photo takes to be read and to go through the backbone :math:`t_f`, to have
evidence travel within its graph :math:`t_w` and to be read and scored :math:`t_c`, to be labelled
:math:`t_l`; that one position takes in one iteration of the classifier :math:`t_n`; and
:math:`t_0 + M t_e` for the fit to the tags. :class:`Rates` are these, timed on a few photos on the
machine that is asked: a table of another machine would tell little.

Memory is what the process holds with one photo at a time, plus what grows with their number:

.. math::
    \max \bigl( 16 M C + 48 M K, \; 4 M C + 12 R s^2, \; 4 M C + 8 R s^2 + 8 N C + 16 N (K + 1)
    \bigr)

bytes in the fit (mean features, in double precision; three sets of maps; positions, twice while
they are put together) and :math:`8 R s^2` in labelling. The system counts pages of the bank that
were read as memory of the process too; it takes them back whenever it needs room.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from pgnn_geo.app.config import LabelConfig
from pgnn_geo.app.labelling import label_images
from pgnn_geo.datasets import TaggedDataset
from pgnn_geo.errors import InputError
from pgnn_geo.features import FeatureBank, FrozenFeatureConfig, frozen_features
from pgnn_geo.io.files import npy_size
from pgnn_geo.io.masks import save_mask
from pgnn_geo.io.run_folder import peak_memory
from pgnn_geo.labels.evidence import EvidenceConfig, StepName, check_tags, fit_tag_evidence
from pgnn_geo.labels.frozen import EvidenceModel
from pgnn_geo.labels.position_classifier import Positions, fit_position_classifier
from pgnn_geo.nn.backbones import BackboneSource
from pgnn_geo.precision import default_device

T = TypeVar("T")

#: Tells seconds since some moment.
Clock = Callable[[], float]


@dataclass(frozen=True)
class Work:
    """What there is to do.

    Args:
        photos (int): :math:`M`.
        tags (int): :math:`R`, tags of all photos together.
        classes (int): :math:`K`.
        channels (int): :math:`C`.
        side (int): :math:`s`.
        evidence (EvidenceConfig): How evidence is fitted.
    """

    photos: int
    tags: int
    classes: int
    channels: int
    side: int
    evidence: EvidenceConfig

    @property
    def fit_side(self) -> int:
        """Patches per side of the graphs that evidence is fitted on, :math:`g`."""
        grid = self.evidence.grid or self.side
        return min(grid, self.evidence.fit_grid or grid)

    @property
    def positions(self) -> int:
        """Positions that the classifier learns from, :math:`N`."""
        return min(self.photos * self.fit_side**2, self.evidence.positions)


@dataclass(frozen=True)
class Rates:
    """Seconds on one machine, of one backbone at one size; see :mod:`pgnn_geo.app.cost`.

    Args:
        features (float): :math:`t_f`.
        within, within_fit (float): :math:`t_w` on :math:`s` and on :math:`g` patches per side.
        scored, scored_fit (float): :math:`t_c`, likewise.
        position (float): :math:`t_n`.
        tags (tuple of float): :math:`(t_0, t_e)`.
        labels (float): :math:`t_l`.
        memory (int, optional): Bytes that the process held with one photo at a time.
    """

    features: float
    within: float
    within_fit: float
    scored: float
    scored_fit: float
    position: float
    tags: tuple[float, float]
    labels: float
    memory: int | None = None


class StageCost(NamedTuple):
    """What a stage takes."""

    stage: str
    seconds: float
    disk: int  #: bytes that it writes
    memory: int | None  #: bytes at its peak; not known on Windows


def predict_cost(work: Work, rates: Rates) -> list[StageCost]:
    """Return what each stage will take, by the formulas above.

    Args:
        work (Work): What there is to do.
        rates (Rates): How fast the machine does it.
    """
    m, r, k, c = work.photos, work.tags, work.classes, work.channels
    n, cells, config = work.positions, work.side**2, work.evidence
    rounds = config.prototype_rounds + config.classifier_rounds
    more = rounds if config.objectness else 0
    within = config.classifier_rounds + more
    scored = 1 + config.prototype_rounds + rounds + more
    evidence = m * (within * rates.within_fit + scored * rates.scored_fit)
    evidence += config.classifier_rounds * config.iterations * n * rates.position
    evidence += rates.tags[0] + m * rates.tags[1]
    held = max(
        16 * m * c + 48 * m * k,
        4 * m * c + 12 * r * cells,
        4 * m * c + 8 * r * cells + 8 * n * c + 16 * n * (k + 1),
    )
    bank, maps = FeatureBank.file_size(m, c, work.side), npy_size((r, work.side, work.side), "u1")
    labels = m * (rates.within + rates.scored + rates.labels)

    def peak(grows: int) -> int | None:
        return None if rates.memory is None else rates.memory + grows

    return [
        StageCost("features", m * rates.features, bank, peak(0)),
        StageCost("evidence", evidence, 0, peak(held)),
        StageCost("labels", labels, 2 * maps, peak(8 * r * cells)),
    ]


def measure_rates(
    dataset: TaggedDataset,
    source: BackboneSource,
    features: FrozenFeatureConfig,
    evidence: EvidenceConfig,
    labels: LabelConfig,
    photos: int | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[Work, Rates]:
    """Time a few photos, spread over a data set, on this machine, and a few iterations of the fits.

    Args:
        dataset (TaggedDataset): All photos, with tags.
        source (BackboneSource): The backbone.
        features, evidence, labels: Options of the run to come.
        photos (int, optional): How many are timed; another one warms up. 4 if not given, on a GPU,
            which takes several at a time, 64.
        clock (callable): Tells seconds. (default: :func:`time.perf_counter`)

    Returns:
        What there is to do on the whole data set, and how fast it is done here.

    Raises:
        InputError: If the photos have no tags, or all have one in common, or the backbone or an
            option cannot be used.
    """
    if dataset.tags is None:
        raise InputError("What a run takes is predicted for photos with tags; these have none.")
    check_tags(dataset.tags)
    device = default_device()
    backbone = source.build().to(device)
    photos = photos or (64 if device.type == "cuda" else 4)
    chosen = [i * len(dataset) // photos for i in range(photos)]
    one, some = dataset.subset(chosen[:1]), dataset.subset([*chosen[:1], *chosen])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def bank(which: TaggedDataset, name: str) -> FeatureBank:
            return frozen_features(backbone, which, folder / name, features)

        bank(one, "warm")
        first, _ = _timed(clock, lambda: bank(one, "one"))
        seconds, seen = _timed(clock, lambda: bank(some, "some"))
        rate = max(seconds - first, 0) / photos
        tags = dataset.tags[[*chosen[:1], *chosen]]
        work = Work(
            len(dataset),
            int(dataset.tags.bool().sum()),
            len(dataset.classes),
            seen.shape[1],
            seen.shape[-1],
            evidence,
        )
        coarse = replace(evidence, grid=work.fit_side)
        fine, fit = (
            EvidenceModel(work.classes, work.channels, config).to(device)
            for config in (evidence, coarse)
        )
        count = len(some)
        attention = fine.maps(seen, tags, device=device).maps  # which warms up

        def one_pass(model: EvidenceModel, step: StepName) -> float:
            return _timed(clock, lambda: model.maps(seen, tags, step, device))[0] / count

        within, within_fit = one_pass(fine, "classifier"), one_pass(fit, "classifier")
        scored, scored_fit = one_pass(fine, "evidence"), one_pass(fit, "evidence")
        rows = list(attention.split(tags.bool().sum(dim=1).tolist()))

        def write() -> None:
            for index, mask in enumerate(label_images(some, rows, labels)):
                save_mask(folder / f"{index}.png", mask)

        labelled = _timed(clock, write)[0] / count
    memory = peak_memory()
    position, of_tags = _position_rate(work, device, clock), _tag_rates(work, clock)
    passes = within, within_fit, scored, scored_fit
    return work, Rates(rate, *passes, position, of_tags, labelled, memory)


def _timed(clock: Clock, call: Callable[[], T]) -> tuple[float, T]:
    start = clock()
    result = call()
    return clock() - start, result


def _position_rate(work: Work, device: torch.device, clock: Clock) -> float:
    """Time iterations of the classifier on random positions, fewer than it will have."""
    generator = torch.Generator().manual_seed(0)
    count = min(work.positions, 4096)
    x = torch.nn.functional.normalize(torch.randn(count, work.channels, generator=generator))
    label = torch.randint(work.classes + 1, (count,), generator=generator)
    allowed = torch.ones(count, work.classes + 1, dtype=torch.bool)
    positions = Positions(x.to(device), label.to(device), allowed.to(device))

    def fit(iterations: int) -> float:
        return _timed(clock, lambda: fit_position_classifier(positions, iterations=iterations))[0]

    fit(1)
    few = fit(1)
    return max(fit(5) - few, 0) / 4 / count


def _tag_rates(work: Work, clock: Clock) -> tuple[float, float]:
    """Time the fit to the tags on random features of two numbers of photos."""
    generator = torch.Generator().manual_seed(0)

    def fit(count: int) -> float:
        features = torch.randn(count, work.channels, generator=generator)
        tags = torch.rand(count, work.classes, generator=generator) < 0.5
        tags[0] = False  # no class is everywhere
        return _timed(clock, lambda: fit_tag_evidence(features, tags))[0]

    few, many = 64, 256
    seconds = fit(few), fit(many)
    each = max(seconds[1] - seconds[0], 0) / (many - few)
    return max(seconds[0] - few * each, 0), each


def describe_cost(work: Work, costs: list[StageCost]) -> list[str]:
    """Return a prediction as lines of text."""
    lines = [
        f"stage 1 of {work.photos:,} photos with {work.tags:,} tags of {work.classes} classes, "
        f"features of {work.channels:,} channels on {work.side} x {work.side} positions; seconds "
        "as a few photos took here and now, in one process:"
    ]
    for cost in costs:
        memory = "" if cost.memory is None else f", memory {_bytes(cost.memory)}"
        disk = f", disk {_bytes(cost.disk)} ({cost.disk:,} bytes)" if cost.disk else ""
        lines.append(f"  {cost.stage}: {_duration(cost.seconds)}{disk}{memory}")
    seconds = sum(cost.seconds for cost in costs)
    return [
        *lines,
        f"  in all: {_duration(seconds)}; the features go when it is done, unless --cache keeps "
        "them, and label images come on top",
    ]


def _bytes(count: int) -> str:
    for size, name in ((1e12, "TB"), (1e9, "GB")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count / 1e6:.3g} MB"


def _duration(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {name}"
    return f"{seconds:.2g} s"
