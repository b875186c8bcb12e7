r"""Attention maps of a whole data set: partner groups averaged, over scales and mirroring."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pgnn_geo.datasets import TaggedDataset, partner_groups
from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import FeatureBank, Features
from pgnn_geo.features.stems import BATCH, stem_bank, stem_batches
from pgnn_geo.features.views import Progress, View, no_progress
from pgnn_geo.features.whitening import WhitenedFeatures, Whitening
from pgnn_geo.graph.node_boxes import NodeBoxes
from pgnn_geo.io.files import temporary_prefix
from pgnn_geo.labels.propagation import Propagated, PropagationName, propagate
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.nn import PGNN
from pgnn_geo.nn.backbones import Backbone, build_backbone
from pgnn_geo.nn.decoder import ActivationName
from pgnn_geo.precision import Precision, autocast
from pgnn_geo.ranks import ALONE, Ranks


@dataclass(frozen=True)
class MapConfig:
    """How attention maps are inferred.

    Args:
        size (int, optional): Side of the square that photos are squashed to, in pixels: 256 if not
            given, in a run that of the training.
        scales (sequence of float): Multiples of :obj:`size`; the maps are summed.
        flip (bool): Average what the network says with what it says of the mirrored photo.
        source (str): For a P-GNN, the head whose maps are taken: :obj:`"graph"`, the one after the
            graph, or :obj:`"backbone"`, the one before it, which the graph has helped to train.
        activation (str, optional): How scores become maps, see
            :func:`~pgnn_geo.nn.decoder.activate`; by default as the model was trained.
        partners (int): Groups that are averaged for each photo and class after the graph.
        group_size (int, optional): Photos in a group: 3 if not given, in a run as in the training.
        propagate (str): Completion of the maps by evidence from other positions and photos, see
            :func:`~pgnn_geo.labels.propagation.propagate`.
        propagation_power (float): Exponent of its similarities within a photo.
        propagation_features (str): What positions are compared by, the outputs of the last two
            stages: of the :obj:`"pretrained"` backbone that training started from, of the
            :obj:`"trained"` one, or :obj:`"auto"`: the former where there is one.
        propagation_whitening (float, optional): Ridge of the whitening of these features, see
            :class:`~pgnn_geo.features.Whitening`; none by default. It helps
            features of random weights trained on few photos, and harms those of ImageNet.
        output_stride (int): Stride of the feature map.
        seed (int, optional): Seed of the choice of partners: 0 if not given, in a run that of the
            training.
        precision (str): Of the network: :obj:`"auto"` or one of Lightning's names.
    """

    size: int | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = True
    source: Literal["graph", "backbone"] = "graph"
    activation: ActivationName | None = None
    partners: int = 3
    group_size: int | None = None
    propagate: PropagationName = "within"
    propagation_power: float = 2.0
    propagation_features: Literal["auto", "pretrained", "trained"] = "auto"
    propagation_whitening: float | None = None
    output_stride: int = 16
    seed: int | None = None
    precision: Precision = "auto"

    def settled(self, size: int = 256, group_size: int = 3, seed: int = 0) -> "MapConfig":
        """Return a copy in which what was left open has these values."""
        given = {"size": size, "group_size": group_size, "seed": seed}
        left: dict[str, Any] = {
            name: value for name, value in given.items() if getattr(self, name) is None
        }
        return replace(self, **left)


@torch.inference_mode()
def attention_maps(
    model: PGNN,
    dataset: TaggedDataset,
    config: MapConfig | None = None,
    stem_folder: Path | None = None,
    scratch_folder: Path | None = None,
    progress: Progress = no_progress,
    boxes: NodeBoxes | None = None,
    observe: Callable[[Propagated], None] | None = None,
    ranks: Ranks = ALONE,
) -> list[Tensor]:
    r"""Return the attention maps of every photo's tagged classes.

    For photo :math:`i` and class :math:`c` after the graph, :math:`P` = :obj:`partners` groups are
    made of the photo and others tagged :math:`c`; which ones depends on the seed, the photo and the
    class alone, never on the batch. With :math:`s` the class scores at one scale,

    .. math::
        A_{i,c} = \mathrm{norm} \sum_{\text{scales}} \mathrm{propagate} \Bigl( \mathrm{norm} \,
        \phi \Bigl( \frac{1}{P} \sum_{p=1}^{P} s_{i,c}^{(p)} \Bigr) \Bigr), \qquad
        \mathrm{norm}(a) = a / \max a

    where :math:`\phi` is the activation. Without a graph (:obj:`layers=0`), or with the head before
    it, there are no groups; a CAM is the former with ReLU and without propagation.

    Args:
        model (PGNN): The network; its output stride is set for the time of the call.
        dataset (TaggedDataset): Photos with tags.
        config (MapConfig, optional): How; default values if not given.
        stem_folder (Path, optional): Where outputs of frozen stages are kept for reuse; computed
            afresh if not given.
        scratch_folder (Path, optional): Where the features of one scale are put for the time of
            the call: :math:`2 M C h w` bytes, :math:`C` being the channels of the last two stages
            and of what :obj:`source` needs. The system's temporary folder if not given.
        progress (callable, optional): Progress display.
        boxes (NodeBoxes, optional): The photos' boxes, which a graph whose nodes are boxes needs.
        observe (callable, optional): Called at each scale, see
            :func:`~pgnn_geo.labels.propagation.propagate`.
        ranks (Ranks): The processes that share the photos, which must see both folders; each has
            all maps in the end. (default: this one alone)

    Returns:
        For each photo, maps :obj:`[k, h, w]` in :math:`[0, 1]` of its :obj:`k` tagged classes in
        the order of the classes; :math:`h = w` = size / stride.

    Raises:
        InputError: If the data set has no tags, or :obj:`propagation_features="pretrained"` and the
            model was trained from random weights, or its boxes are missing.
    """
    config = (config or MapConfig()).settled()
    if dataset.tags is None:
        raise InputError("Attention maps need image tags; this split has none.")
    before = model.backbone_decoder is None or config.source == "backbone"
    if before or not model.needs_boxes:
        boxes = None
    elif boxes is None or len(boxes) != len(dataset):
        raise InputError(f"The nodes of this model's graph are boxes; want {len(dataset)} photos'.")
    tags = dataset.tags.bool()
    reference = None if config.propagate == "none" else _reference_backbone(model, config)
    training, stride = model.training, model.backbone.output_stride
    device = model.backbone.device
    model.eval()
    model.backbone.set_output_stride(config.output_stride)
    base = config.size
    assert base is not None  # which is settled
    side = -(-base // config.output_stride)
    total = TaggedMaps.empty(tags, side)
    width = model.num_classes if before else model.backbone.out_channels
    try:
        for scale in config.scales:
            size = max(16, round(base * scale / 16) * 16)

            streams = _streams(model, dataset, size, config, stem_folder, progress, ranks)

            def outputs(
                first: int, streams: list[Callable[[int], Iterator[Tensor]]] = streams
            ) -> Iterator[Tensor]:
                left = -(-(len(dataset) - first) // BATCH)
                batches = zip(*(stream(first) for stream in streams), strict=True)
                return _outputs(model, reference, config, progress(batches, "features", left))

            with _scratch(scratch_folder, ranks) as scratch:
                bank = FeatureBank.build(
                    scratch / "features.npy", outputs, len(dataset), {"size": size}, ranks, BATCH
                )
                evidence = bank.channels(0, width)
                if before:
                    scores = torch.cat(
                        [
                            evidence[photos][tags[photos]]
                            for photos in torch.arange(len(bank)).split(64)
                        ]
                    )
                else:
                    with autocast(config.precision, device):
                        scores = _graph_scores(model, evidence, total, config, boxes, ranks)
                features: Features = bank.channels(width)
                ridge = config.propagation_whitening if reference is not None else None
                if ridge is not None:
                    fit = partial(Whitening.fit, features, ridge, device)
                    features = WhitenedFeatures(features, ranks.first(fit).to(device))
                maps = propagate(
                    config.propagate,
                    features,
                    total.activated(scores, config.activation or model.activation),
                    config.propagation_power,
                    device,
                    observe,
                    ranks,
                ).maps
            total.maps += F.interpolate(
                maps[:, None], (side, side), mode="bilinear", align_corners=False
            )[:, 0]
    finally:
        model.backbone.set_output_stride(stride)
        model.train(training)
    return list(total.with_maps(total.maps).maps.split(tags.sum(dim=1).tolist()))


def _reference_backbone(model: PGNN, config: MapConfig) -> Backbone:
    """Return the backbone whose features positions are compared by."""
    weights: Any = model.config["weights"]
    if config.propagation_features == "trained" or (
        config.propagation_features == "auto" and weights is None
    ):
        return model.backbone
    if weights is None:
        raise InputError(
            "propagation_features='pretrained': this model was trained from random weights; "
            "want 'auto' or 'trained'"
        )
    frozen = model.backbone.frozen_stages  # one stem serves both
    name: Any = model.config["backbone"]
    reference = build_backbone(name, weights, config.output_stride, frozen)
    return reference.to(model.backbone.device).eval()


@contextmanager
def _scratch(folder: Path | None, ranks: Ranks) -> Iterator[Path]:
    """Make a folder of which all processes know, for the time of a block."""

    def made() -> AbstractContextManager[str]:
        return tempfile.TemporaryDirectory(dir=folder, prefix=temporary_prefix())

    with made() if ranks.is_first else nullcontext("") as name:
        yield Path(ranks.first(lambda: name))
        ranks.wait()  # for those who still read


def _streams(
    model: PGNN,
    dataset: TaggedDataset,
    size: int,
    config: MapConfig,
    stem_folder: Path | None,
    progress: Progress,
    ranks: Ranks,
) -> list[Callable[[int], Iterator[Tensor]]]:
    """Return what yields the frozen stages' outputs of each view, from a photo on."""
    backbone, streams = model.backbone, list[Callable[[int], Iterator[Tensor]]]()
    for view in (View(size), View(size, flip=True))[: 1 + config.flip]:
        stems, precision = None, config.precision
        if stem_folder is not None and backbone.frozen_stages:
            stems = stem_bank(backbone, dataset, stem_folder, view, progress, precision, ranks)
        streams.append(
            partial(stem_batches, backbone, dataset, view, stems, BATCH, config.precision)
        )
    return streams


def _outputs(
    model: PGNN,
    reference: Backbone | None,
    config: MapConfig,
    batches: Iterable[tuple[Tensor, ...]],
) -> Iterator[Tensor]:
    """Yield what is needed of every photo, averaged with its mirror image turned back.

    First the scores of the head before the graph, or the features that the graph needs; then the
    unit features of :obj:`reference`, if there is one.
    """
    backbone = model.backbone
    head = model.backbone_decoder or model.decoder

    def run(x: Tensor) -> list[Tensor]:
        with autocast(config.precision, x.device):
            trained = backbone.levels(x)
            first = trained[-1] * backbone.scale
            if model.backbone_decoder is None or config.source == "backbone":
                first = head(first)[0]
            levels: list[Tensor] = []
            if reference is not None:
                levels = trained if reference is backbone else reference.levels(x)
        return [output.float() for output in (first, *levels)]

    for views in batches:
        outputs = run(views[0])
        for mirrored in views[1:]:
            turned = [output.flip(-1) for output in run(mirrored)]
            outputs = [(a + b) / 2 for a, b in zip(outputs, turned, strict=True)]
        first, *levels = outputs
        # Of one length each, so that no stage outweighs the other.
        yield torch.cat([first, *(F.normalize(level, dim=1) for level in levels)], dim=1)


def _graph_scores(
    model: PGNN,
    features: FeatureBank,
    rows: TaggedMaps,
    config: MapConfig,
    boxes: NodeBoxes | None,
    ranks: Ranks,
) -> Tensor:
    """Return the score map :obj:`[R, h, w]` after the graph of every photo and tagged class."""
    device = model.backbone.device
    # Features of the mirrored photo were turned back, so boxes are never mirrored here.
    every = torch.arange(len(features))
    nodes = None if boxes is None else boxes.shown(every, features.shape[2:], device=device)
    partners, group_size, seed = config.partners, config.group_size, config.seed
    assert group_size is not None and seed is not None  # which are settled
    groups = partner_groups(rows.tags, partners=partners, group_size=group_size, seed=seed)
    members = groups.indices.view(len(rows.owners), -1)  # the photo itself first in each group
    result = [torch.empty(0, *features.shape[2:])]
    chunks = [*zip(members.split(4), rows.classes.split(4), strict=True)]
    for photos, classes in ranks.share(chunks):
        unique, inverse = photos.flatten().unique(return_inverse=True)
        x = features[unique].to(device)[inverse.to(device)]
        group = torch.arange(len(x), device=device) // group_size
        tags = rows.tags[photos.flatten()].to(device)
        box, label = (
            ([part[i] for i in photos.flatten()] for part in nodes) if nodes else [None] * 2
        )
        output = model.forward_features(x, group, tags, boxes=box, box_class=label)
        maps = output.scores  # [4 P N, K, h, w]
        maps = maps.view(len(photos), partners, group_size, *maps.shape[1:])
        anchors = maps[:, :, 0].mean(dim=1)
        picked = classes.to(device).view(-1, 1, 1, 1).expand(-1, 1, *anchors.shape[-2:])
        result.append(anchors.gather(1, picked)[:, 0].float().cpu())
    return ranks.cat(torch.cat(result))
