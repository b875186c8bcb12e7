"""What the ablation trains, which maps it takes, and which rows its tables have: all of it data.

A row is a *variant* (a change of :class:`~pgnn_geo.app.config.RunConfig`, trained once per seed)
and *maps* (a change of :class:`~pgnn_geo.labels.maps.MapConfig`, inferred from what was trained).
Variants that come out equal are trained once, whatever they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from pgnn_geo.app.config import ModelName, RunConfig
from pgnn_geo.boxes.config import BoxConfig
from pgnn_geo.labels.maps import MapConfig
from pgnn_geo.nn.pgnn import ClassEmbeddingName

Change = Callable[[RunConfig], RunConfig]


@dataclass(frozen=True)
class Variant:
    """One way to train: the CAM baseline or the P-GNN of a changed configuration."""

    model: ModelName = "pgnn"
    change: Change = lambda config: config


def network(**changes: Any) -> Change:
    """Change the network."""
    return lambda config: replace(config, network=config.network | changes)


def training(**changes: Any) -> Change:
    """Change the training."""
    return lambda config: replace(config, train=replace(config.train, **changes))


def boxes(**values: Any) -> Change:
    """Make the patches boxes."""
    return lambda config: replace(config, patches=BoxConfig(**values))


def no_graph(config: RunConfig) -> RunConfig:
    """Leave out the patch graph, as `pgnn-geo run` does."""
    return replace(config, patches="none")


def classed(embedding: ClassEmbeddingName) -> Change:
    """Give the nodes the classes of the completed maps."""
    return lambda config: replace(
        config,
        network=config.network | {"class_embedding": embedding},
        train=replace(config.train, node_classes="references"),
    )


def tags_only(config: RunConfig) -> RunConfig:
    """As many epochs as by default, all on tags, as the CAM has them."""
    return replace(config, train=config.train_of("cam"))


def weighted(*weights: float) -> Change:
    """Train with the loss's stable form under these lambdas."""

    def change(config: RunConfig) -> RunConfig:
        loss = config.train.complementary_loss | {"weights": weights}
        return training(complementary="stable", complementary_loss=loss)(config)

    return change


LAMBDAS = (
    (1.0, 1.0, 0.8, 1.0),
    (0.0, 1.0, 0.8, 1.0),
    (0.5, 1.0, 0.8, 1.0),
    (1.0, 0.0, 0.8, 1.0),
    (1.0, 0.5, 0.8, 1.0),
    (1.0, 1.0, 0.0, 1.0),
    (1.0, 1.0, 0.4, 1.0),
)


def lambda_name(weights: Iterable[float]) -> str:
    """Return the variant's name of four lambdas."""
    return "lambda-" + "-".join(f"{weight:g}" for weight in weights)


FILE_VARIANT = "boxes-file"  #: the one that is run only with the file of --boxes
VARIANTS: dict[str, Variant] = {
    "cam": Variant("cam", no_graph),
    "pgnn": Variant(),
    "tags": Variant(change=tags_only),
    "no-graph": Variant(change=no_graph),
    "two-layers": Variant(change=network(layers=2)),
    "embedding-attention": Variant(change=classed("attention")),
    "embedding-input": Variant(change=classed("input")),
    **{
        f"loss-{mode}": Variant(change=training(complementary=mode))
        for mode in ("off", "stable", "paper", "erase")
    },
    **{f"grid-{grid}": Variant(change=network(grid=grid)) for grid in (2, 4, 6, 8, 16)},
    **{lambda_name(weights): Variant(change=weighted(*weights)) for weights in LAMBDAS},
    **{f"boxes-{k}": Variant(change=boxes(top_k=k)) for k in (3, 5, 10)},
    FILE_VARIANT: Variant(change=boxes(source="file", file="the FILE of --boxes")),
}

BEFORE = {"source": "backbone", "propagate": "none"}
AFTER = {"source": "graph", "propagate": "none"}


def kinds() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield name, title and changes of the propagation's variants."""
    for kind in ("within", "prototypes", "both"):
        plain = {"propagate": kind}
        if kind == "prototypes":  # the linear form has no exponent
            yield kind, kind, plain
        else:
            for power in (2, 1):
                change = {**plain, "propagation_power": float(power)}
                yield f"{kind}-p{power}", f"{kind}, power {power}", change
        change = {**plain, "propagation_features": "trained"}
        yield f"{kind}-trained", f"{kind}, trained features", change


PROPAGATIONS = {name: (title, change) for name, title, change in kinds()}
MAPS: dict[str, dict[str, Any]] = {
    "before": BEFORE,
    "after": AFTER,
    "before-within": {**BEFORE, "propagate": "within"},
    "after-within": {**AFTER, "propagate": "within"},
    "before-both": {**BEFORE, "propagate": "both"},
    "after-both": {**AFTER, "propagate": "both"},
    **{name: change for name, (_, change) in PROPAGATIONS.items()},
    "none": {"propagate": "none"},
    "default": {},
}


class Row(NamedTuple):
    """One line of a table."""

    label: str
    variant: str
    maps: str
    paper: str = ""  #: what the paper prints, P / R on all of VOC


@dataclass(frozen=True)
class Table:
    """Rows that answer one question; with :obj:`headline` over all seeds, else the first."""

    name: str
    title: str
    rows: tuple[Row, ...]
    headline: bool = False


DEFAULT = "no graph, completion + propagation within: the default of `pgnn-geo run`"
PAPER_CAM, PAPER_PGNN = "46.3 / 59.7", "57.8 / 86.3"


def _with_maps(
    rows: Iterable[tuple[str, str]], maps: Sequence[str] = ("before", "default")
) -> tuple[Row, ...]:
    names = {"before": "before the graph", "after": "after the graph", "default": "by default"}
    maps = tuple(maps)
    return tuple(
        Row(f"{label}; maps {names[name]}", variant, name)
        for label, variant in rows
        for name in maps
    )


TABLES = (
    Table(
        "headline",
        "What each part adds",
        (
            Row("CAM", "cam", "before", PAPER_CAM),
            Row("CAM + propagation", "cam", "before-both"),
            Row("P-GNN, tags only, before the graph", "tags", "before"),
            Row("P-GNN, tags only, before the graph + propagation", "tags", "before-both"),
            Row("P-GNN, tags only, after the graph", "tags", "after"),
            Row("P-GNN, tags only, after the graph + propagation", "tags", "after-both"),
            Row("no graph, completion", "no-graph", "before"),
            Row(DEFAULT, "no-graph", "default"),
            Row("P-GNN, completion, before the graph", "pgnn", "before"),
            Row("P-GNN, completion, before + propagation within", "pgnn", "before-within"),
            Row("P-GNN, completion, after the graph", "pgnn", "after"),
            Row("P-GNN, completion, after + propagation within", "pgnn", "default", PAPER_PGNN),
            Row("the same, classes of patches in the attention", "embedding-attention", "default"),
            Row("the same, soft-complementary loss, stable", "loss-stable", "default"),
        ),
        headline=True,
    ),
    Table(
        "1",
        "Table 1: CAM and P-GNN",
        (
            Row("CAM", "cam", "before", PAPER_CAM),
            Row("P-GNN", "pgnn", "default", PAPER_PGNN),
        ),
        headline=True,
    ),
    Table(
        "4",
        "Table 4: components, one changed at a time",
        _with_maps(
            [
                ("P-GNN", "pgnn"),
                ("no graph", "no-graph"),
                ("two layers", "two-layers"),
                ("no completion (all epochs on tags)", "tags"),
                ("classes of patches in the attention", "embedding-attention"),
                ("classes of patches in the input", "embedding-input"),
                ("soft-complementary loss off", "loss-off"),
                ("soft-complementary loss, stable", "loss-stable"),
                ("soft-complementary loss, as printed", "loss-paper"),
                ("soft-complementary loss, erasing", "loss-erase"),
            ]
        ),
    ),
    Table(
        "5",
        "Table 5: patches per photo",
        _with_maps(
            [(f"{grid * grid} patches", f"grid-{grid}") for grid in (2, 4, 6, 8, 16)],
            ("before", "after", "default"),
        ),
    ),
    Table(
        "6",
        "Table 6: the loss's weights (destroy, preserve, TV, classification)",
        _with_maps([(str(weights), lambda_name(weights)) for weights in LAMBDAS]),
    ),
    Table(
        "patches",
        "Grid or boxes",
        _with_maps(
            [
                ("grid of 4 x 4", "grid-4"),
                *((f"best {k} boxes of attention maps", f"boxes-{k}") for k in (3, 5, 10)),
                ("boxes of a file", FILE_VARIANT),
            ],
            ("after", "default"),
        ),
        headline=True,
    ),
    Table(
        "propagation",
        "Propagation",
        tuple(
            row
            for label, variant in (("CAM", "cam"), ("P-GNN", "pgnn"))
            for row in (
                Row(f"{label}, none", variant, "none"),
                *(
                    Row(f"{label}, {title}", variant, key)
                    for key, (title, _) in PROPAGATIONS.items()
                ),
            )
        ),
    ),
)


@dataclass(frozen=True)
class Planned:
    """What a row comes down to."""

    variant: str
    maps: str
    model: ModelName
    config: RunConfig
    map_config: MapConfig
    background: float  #: the fixed score, whatever the truth says

    def seeded(self, seed: int) -> RunConfig:
        """Return the configuration of one seed."""
        return replace(self.config, train=replace(self.config.train, seed=seed))

    @property
    def cam(self) -> Planned:
        """The baseline beside it, whose maps give it boxes."""
        return replace(self, variant="cam", model="cam", config=no_graph(self.config))


def network_of(config: RunConfig, model: ModelName) -> dict[str, Any]:
    """Return the arguments of a model's network, without layers if it has no graph."""
    bare = model == "cam" or config.patches == "none"
    return config.network | {"layers": 0} if bare else config.network


class Plan:
    """All rows under one base configuration, equal variants and maps under one name.

    A model that was trained on tags alone gives the maps that completion starts from, so they are
    inferred as :obj:`train.completion` says; those of a completed one as :obj:`maps` says.

    Args:
        base (RunConfig): What the variants change; the patch graph is theirs.
        box_file (str, optional): The boxes of the variant that has them from a file.
    """

    def __init__(self, base: RunConfig, box_file: str | None = None) -> None:
        self.variants: dict[str, tuple[str, ModelName, RunConfig]] = {}
        seen: list[tuple[str, Any]] = []
        for name, variant in VARIANTS.items():
            config = variant.change(replace(base, patches="grid"))
            if name == FILE_VARIANT and box_file is not None:
                config = boxes(source="file", file=box_file)(config)
            settings = network_of(config, variant.model)
            trained = settings, config.train_of(variant.model), config.boxes
            same = next((other for other, there in seen if there == trained), name)
            seen.append((name, trained))
            self.variants[name] = same, variant.model, config

    def of(self, row: Row) -> Planned:
        """Return what a row comes down to."""
        variant, model, config = self.variants[row.variant]
        completed = config.train_of(model).completion_epochs > 0
        start = config.maps_of("pgnn") if completed else config.train.completion_maps
        graph = network_of(config, model)["layers"] > 0

        def maps_of(changes: dict[str, Any]) -> MapConfig:
            maps = replace(start, **changes)
            return maps if graph else replace(maps, source="backbone")  # there is one head

        maps = maps_of(MAPS[row.maps])
        name = next(name for name, changes in MAPS.items() if maps_of(changes) == maps)
        background = config.labels_of(model).background
        if not completed:
            # A CAM's score for a map of its kind; for a propagated one the middle of what
            # completion takes for background and for an object.
            background = config.labels_of("cam").background
            if maps.propagate != "none":
                background = (config.train.foreground + config.train.background) / 2
        return Planned(variant, name, model, config, maps, background)


def describe(planned: Planned, seed: int) -> dict[str, Any]:
    """Return everything that decides a cell, as JSON has it."""
    config = planned.seeded(seed)
    return {
        "variant": planned.variant,
        "maps": planned.maps,
        "seed": seed,
        "model": planned.model,
        "network": network_of(config, planned.model),
        "train": asdict(config.train_of(planned.model)),
        "boxes": None if config.boxes is None else asdict(config.boxes),
        "map_config": asdict(planned.map_config),
        "background": planned.background,
    }
