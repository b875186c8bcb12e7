r"""From frozen features and tags to attention maps: evidence, propagation, positions, propagation.

.. math::
    \text{tags} \xrightarrow{\text{logistic regression}} A^{(1)} \xrightarrow{\text{prototypes}}
    A^{(2)} \xrightarrow{\text{classifier of positions}} A^{(3)} \xrightarrow{\text{within}} A

With :obj:`objectness` each learns from the maps before where the other classes see objects.

Everything that is fitted is convex or starts at zero, over all data in every step: the same
photos and tags give the same maps.
"""

from functools import partial

import torch
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.features.bank import Features
from pgnn_geo.features.whitening import WhitenedFeatures, Whitening
from pgnn_geo.labels.absence import class_thresholds, doubtful, photo_scores
from pgnn_geo.labels.evidence import (
    EvidenceConfig,
    StepName,
    fit_tag_evidence,
    held_out_probabilities,
)
from pgnn_geo.labels.objectness import fit_objectness, on_objects
from pgnn_geo.labels.position_classifier import (
    Positions,
    confident_labels,
    fit_position_classifier,
    position_maps,
)
from pgnn_geo.labels.propagation import (
    PhotoGraphs,
    Propagated,
    Step,
    complete,
    fit_prototypes,
    from_prototypes,
    mean_features,
    own_blocks,
    photo_graphs,
    within,
)
from pgnn_geo.labels.tagged_maps import TaggedMaps
from pgnn_geo.nn import ClassPrototypes, CongenericPropagation
from pgnn_geo.nn.propagation import centered_unit
from pgnn_geo.ranks import ALONE, Ranks


class EvidenceModel(nn.Module):
    """What was learned from tags on frozen features, by which any tagged photos can be labelled.

    Args:
        num_classes (int): Number of classes :math:`K`.
        channels (int): Channels of the features.
        config (EvidenceConfig, optional): How; default values if not given.
    """

    absence: Tensor | None

    def __init__(self, num_classes: int, channels: int, config: EvidenceConfig | None = None):
        super().__init__()
        self.config = config or EvidenceConfig()
        self.num_classes, self.channels = num_classes, channels
        self.whitening = None if self.config.whitening is None else Whitening(channels)
        self.evidence = nn.Buffer(torch.zeros(num_classes, channels))
        self.classifier = nn.Buffer(torch.zeros(num_classes + 1, channels + 1))
        self.prototypes = ClassPrototypes(num_classes, channels, self.config.threshold)
        self.propagation = CongenericPropagation(
            self.config.kernel, mean=torch.zeros(channels), power=self.config.power
        )
        # Scores above which absent tags are not believed, see labels/absence.py.
        never = torch.full((num_classes,), float("inf"))
        self.register_buffer("absence", None if self.config.absence is None else never)

    def maps(
        self,
        features: Features,
        tags: Tensor,
        step: StepName | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> TaggedMaps:
        """Return the attention maps of photos.

        Args:
            features (Features): Features of the photos, squares.
            tags (torch.Tensor): Multi-hot tags :obj:`[M, K]`.
            step (str, optional): The one that is asked, the last one by default:
                :obj:`"evidence"`, the class activation maps of the tags' classifier;
                :obj:`"prototypes"` or :obj:`"classifier"`, propagated within each photo.
            device (torch.device or str): Where to compute. (default: :obj:`"cpu"`)
            ranks (Ranks): The processes that share the photos. (default: this one alone)

        Raises:
            InputError: If there is no such step.
        """
        step = step or self.config.last_step
        if step == "classifier" and step != self.config.last_step:
            raise InputError("step='classifier': this model has none, classifier_rounds=0")
        confidence = self.config.confidence if step == "classifier" else 0.0
        features, grid = self.seen(features), self._grid(features)
        return self._complete(features, tags, step, device, grid, confidence, ranks)

    def with_missing(
        self,
        features: Features,
        tags: Tensor,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> Tensor:
        """Return the tags of photos and those whose absence is not believed, :obj:`[M, K]`, bool.

        Args:
            features, tags, device, ranks: See :meth:`maps`.
        """
        if self.absence is None:
            return tags.bool()
        scores = self._scores(features, device, ranks)
        return tags.bool() | doubtful(scores, tags, self.absence.cpu())

    def _scores(self, features: Features, device: torch.device | str, ranks: Ranks) -> Tensor:
        features, grid = self.seen(features), self._fit_grid(features)
        return photo_scores(self.classifier, self.propagation, features, grid, device, ranks)

    def _grid(self, features: Features) -> int:
        side = features.shape[-1]
        return min(self.config.grid or side, side)

    def _fit_grid(self, features: Features) -> int:
        grid = self._grid(features)
        return min(grid, self.config.fit_grid or grid)

    def seen(self, features: Features) -> Features:
        """Return features of photos as all steps compare them: whitened, or as they are."""
        return features if self.whitening is None else WhitenedFeatures(features, self.whitening)

    def _complete(
        self,
        features: Features,
        tags: Tensor,
        step: StepName,
        device: torch.device | str,
        grid: int,
        confidence: float = 0.0,
        ranks: Ranks = ALONE,
    ) -> TaggedMaps:
        start = TaggedMaps.empty(tags, features.shape[-1])
        travel, steps = within(self.propagation), list[Step]()
        if step == "evidence":
            steps = [self._evidence_step]
        elif step == "prototypes":
            steps = [from_prototypes(self.prototypes), travel]
        else:
            # One step: propagated probabilities are still on the scale of probabilities.
            steps = [lambda graphs, values: travel(graphs, self._probabilities(graphs, values))]
        return complete(features, start, steps, grid, device, confidence, ranks)

    def before_propagation(
        self, features: Features, tags: Tensor, device: torch.device | str = "cpu"
    ) -> Propagated:
        """Return the last step of :meth:`maps`, in which evidence travels within each photo.

        Args:
            features, tags, device: See :meth:`maps`.
        """
        features, grid = self.seen(features), self._grid(features)
        start = TaggedMaps.empty(tags, features.shape[-1])
        step: Step = from_prototypes(self.prototypes)
        if self.config.last_step == "classifier":
            step = self._probabilities
        start = complete(features, start, [step], grid, device)
        return Propagated(features, start, self.propagation, grid, device)

    def _evidence_step(self, graphs: PhotoGraphs, values: Tensor) -> Tensor:
        mean = self.propagation.mean
        assert mean is not None
        return ((graphs.x - mean) @ self.evidence.t()).relu()

    def _probabilities(self, graphs: PhotoGraphs, values: Tensor) -> Tensor:
        unit = centered_unit(graphs.x, self.propagation.mean)
        return position_maps(self.classifier, unit, graphs.tags)


@torch.no_grad()
def fit_evidence(
    features: Features,
    tags: Tensor,
    config: EvidenceConfig | None = None,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> EvidenceModel:
    """Learn from the tags of photos.

    Of several processes each goes through its share of the photos; the two linear fits, which take
    as long however many photos there are or next to nothing, and the whitening, which takes one
    pass, are the first one's.

    Args:
        features (Features): Features of :math:`M` photos, squares.
        tags (torch.Tensor): Their multi-hot tags :obj:`[M, K]`.
        config (EvidenceConfig, optional): How; default values if not given.
        device (torch.device or str): Where to compute. (default: :obj:`"cpu"`)
        ranks (Ranks): The processes that share the photos. (default: this one alone)

    Raises:
        InputError: If numbers of photos disagree, or all photos have one tag.
    """
    if len(features) != len(tags):
        raise InputError(f"features of {len(features)} photos, tags of {len(tags)}")
    model = EvidenceModel(tags.size(1), features.shape[1], config).to(device)
    config = model.config
    if config.whitening is not None:
        fit = partial(Whitening.fit, features, config.whitening, device)
        model.whitening = ranks.first(fit).to(device)
    bank = features
    features = model.seen(features)
    means = mean_features(features, device, ranks)
    mean = means.mean(dim=0)
    assert model.propagation.mean is not None  # which the constructor gave it
    model.propagation.mean.copy_(mean)
    penalty, possible = config.evidence_penalty, tags.bool()
    if config.absence is not None:
        likely = ranks.first(lambda: held_out_probabilities(means - mean, tags, penalty))
        thresholds = class_thresholds(likely, tags, config.absence)
        possible = possible | doubtful(likely, tags, thresholds)
    known = possible == tags.bool()
    weight, _ = ranks.first(lambda: fit_tag_evidence(means - mean, tags, penalty, known))
    model.evidence.copy_(weight)
    grid = model._fit_grid(features)
    maps = model._complete(features, tags, "evidence", device, grid, ranks=ranks)
    if config.evidence_window > 1:
        maps = maps.averaged(config.evidence_window)
    for turn in range(config.prototype_rounds):
        if turn:
            scored = from_prototypes(model.prototypes)
            maps = complete(features, maps, [scored], grid, device, ranks=ranks)
        maps = _on_objects(model, features, maps, grid, device, ranks)
        fitted = fit_prototypes(features, maps, mean, config.threshold, grid, device, ranks)
        model.prototypes.load_state_dict(fitted.state_dict())
    for turn in range(config.classifier_rounds):
        step: StepName = "classifier" if turn else "prototypes"
        maps = _learned_from(model, features, tags, step, grid, device, ranks)
        positions = _positions(model, features, maps, possible, grid, device, ranks)
        start = model.classifier if config.warm_start and turn else None
        model.classifier.copy_(ranks.first(partial(_classifier, positions, config, start)))
    if config.absence is not None and model.absence is not None:
        scores = model._scores(bank, device, ranks)
        model.absence.copy_(class_thresholds(scores, tags, config.absence))
    return model


def _learned_from(
    model: EvidenceModel,
    features: Features,
    tags: Tensor,
    step: StepName,
    grid: int,
    device: torch.device | str,
    ranks: Ranks,
) -> TaggedMaps:
    """Return the maps of a step as the next one learns from them."""
    maps = model._complete(features, tags, step, device, grid, ranks=ranks)
    return _on_objects(model, features, maps, grid, device, ranks)


def _classifier(positions: Positions, config: EvidenceConfig, start: Tensor | None) -> Tensor:
    settings = config.penalty, config.partial, config.balance, config.iterations
    return fit_position_classifier(positions, *settings, start=start).cpu()


def _on_objects(
    model: EvidenceModel,
    features: Features,
    maps: TaggedMaps,
    grid: int,
    device: torch.device | str,
    ranks: Ranks,
) -> TaggedMaps:
    """Return the maps where the other classes see objects, or as they are."""
    config, layer = model.config, model.propagation
    if not config.objectness:
        return maps
    mean = layer.mean
    assert mean is not None
    settings = config.foreground, config.background, config.balance, grid, device
    weight = ranks.first(lambda: fit_objectness(features, maps, mean, *settings).cpu())
    step = on_objects(weight.to(device), layer)
    return complete(features, maps, [step], grid, device, ranks=ranks)


def _positions(
    model: EvidenceModel,
    features: Features,
    maps: TaggedMaps,
    possible: Tensor,
    grid: int,
    device: torch.device | str,
    ranks: Ranks,
) -> Positions:
    """Return the positions that the classifier learns from: the same number of every photo."""
    config = model.config
    count = max(1, config.positions // len(features))
    empty = torch.empty(0, model.channels), torch.empty(0, dtype=torch.long)
    parts = [Positions(*empty, torch.empty(0, model.num_classes + 1, dtype=torch.bool))]
    for graphs in (
        graphs
        for block in own_blocks(features, ranks)
        for graphs in photo_graphs(features, maps.tags, grid, device, block)
    ):
        values = graphs.nodes(maps.dense(graphs.photos))
        label = confident_labels(values, graphs.tags, config.foreground, config.background)
        chosen = graphs.sample(count)
        own = possible[graphs.photos].to(chosen.device)[graphs.batch.image_batch[chosen]]
        allowed = torch.nn.functional.pad(own, (1, 0), value=True)
        unit = centered_unit(graphs.x[chosen], model.propagation.mean)
        parts.append(Positions(unit.cpu(), label[chosen].cpu(), allowed.cpu()))
    joined = (torch.cat(part) for part in zip(*parts, strict=True))
    return Positions(*(ranks.cat(part).to(device) for part in joined))
