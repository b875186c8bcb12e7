"""What decides the outcome of a run: data, network, training, maps, labels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, get_args

from pgnn_geo.boxes.config import BoxConfig
from pgnn_geo.datasets.config import DataConfig
from pgnn_geo.errors import InputError
from pgnn_geo.features import FrozenFeatureConfig
from pgnn_geo.labels.evidence import EvidenceConfig
from pgnn_geo.labels.maps import MapConfig
from pgnn_geo.labels.refine import (
    HALF_SIZE,
    HALF_SIZE_DILATIONS,
    Refinement,
    build_refinement,
)
from pgnn_geo.nn import PGNN
from pgnn_geo.nn.architectures import DEEPLAB_V2
from pgnn_geo.nn.backbones import BackboneSource
from pgnn_geo.nn.deeplab import DeepLabV2
from pgnn_geo.nn.segmentation_network import SegmentationNetwork
from pgnn_geo.nn.torchvision_segmentation import TorchvisionSegmentation, TorchvisionSource
from pgnn_geo.options import Arguments
from pgnn_geo.training.attention import AttentionTrainingConfig
from pgnn_geo.training.segmentation_config import RECIPES, SegmentationTrainingConfig

ModelName = Literal["cam", "pgnn"]
FlowName = Literal["frozen", "trained"]


#: What the nodes of the patch graph are: a grid's cells, or boxes; or there is no graph.
Patches = Literal["none", "grid"] | BoxConfig


#: Of a run, the arguments of its network but those that patches, photos and training decide.
NETWORK = Arguments(
    PGNN,
    skip=("num_classes", "box_size", "top_k", "activation", "node_classes"),
    freeze_stages=4,
)

#: Of stage 2, those of its network; :obj:`architecture` says which of the classes it is.
SEGMENTATION_NETWORK = Arguments(
    DeepLabV2,
    TorchvisionSegmentation,
    skip=("num_classes", "head", "dilations", "freeze_stages", "normalize", "propagation"),
    architecture=DEEPLAB_V2,
)


@dataclass(frozen=True)
class LabelConfig:
    """From attention maps to label images, see :func:`~pgnn_geo.labels.refined_labels`.

    Args:
        background (float): Constant background score.
        power (float, optional): Exponent of the other rule, taken if given.
        refine (str): "par" or "crf" to fit the labels to the edges in the photo, "none", or one of
            your own; see :func:`~pgnn_geo.labels.build_refinement`.
        refine_iterations (int): Its iterations.
        refine_dilations (sequence of int): Of :obj:`"par"`: distances of the neighbours.
        refine_scale (float): Of :obj:`"par"`: size at which it works, as a fraction of the photo's.
    """

    background: float = 0.6
    power: float | None = None
    refine: str = "none"
    refine_iterations: int = 10
    refine_dilations: Sequence[int] = HALF_SIZE_DILATIONS
    refine_scale: float = HALF_SIZE

    def build_refinement(self, workers: int = 0) -> Refinement | None:
        """Return the refinement, if any; a CRF with so many processes.

        Raises:
            InputError: If it cannot be had.
        """
        return build_refinement(
            self.refine, self.refine_iterations, self.refine_dilations, workers, self.refine_scale
        )


#: The baseline's maps are scores divided by their maximum, not probabilities.
CAM_LABELS = LabelConfig(background=0.15)

#: What is different in the inference of the baseline's maps.
CAM_MAPS: dict[str, Any] = {"propagate": "none", "output_stride": 8}


def label_defaults(
    model: PGNN,
    labelling: Mapping[str, Any],
    maps: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
) -> tuple[MapConfig, LabelConfig]:
    """Return how a trained model's labels are made.

    Args:
        model (PGNN): The model.
        labelling (mapping): What it was saved with: how its run makes them. Without it, a model
            that has no graph and was trained on tags alone is taken for a CAM, any other for a
            P-GNN, each with its default values.
        maps (mapping, optional): Values that take the place of those of the
            :class:`~pgnn_geo.labels.maps.MapConfig`.
        labels (mapping, optional): Values that take the place of those of the
            :class:`LabelConfig`.
    """
    cam = model.config["layers"] == 0 and model.activation == "relu"
    start = replace(MapConfig(), **CAM_MAPS) if cam else MapConfig()
    start = MapConfig(**labelling["maps"]) if labelling else start
    return replace(start, **(maps or {})), label_config_of(labelling.get("labels"), cam, labels)


def label_config_of(
    saved: Mapping[str, Any] | None, cam: bool, labels: Mapping[str, Any] | None = None
) -> LabelConfig:
    """Return how label images are made.

    Args:
        saved (mapping, optional): What the model was saved with.
        cam (bool): Whether it is a CAM, whose default values hold if nothing was saved.
        labels (mapping, optional): Values that take the place of those.
    """
    default = CAM_LABELS if cam else LabelConfig()
    return replace(LabelConfig(**saved) if saved else default, **(labels or {}))


@dataclass(frozen=True)
class Stage2Config:
    """How stage 2 is done, whatever it learns from.

    Args:
        eval_split (str, optional): Split to measure stage 2 on, if it has masks; null for none. Of
            a folder data set the photos themselves are measured.
        network (dict): Arguments of its network, :class:`~pgnn_geo.nn.DeepLabV2`; with an
            :obj:`architecture` of torchvision, of a :class:`~pgnn_geo.nn.TorchvisionSegmentation`,
            of which :obj:`weights` alone can be chosen. The recipe has the head.
        train (SegmentationTrainingConfig): Hyper-parameters.
        mutual (str): Rewriting of the labels after each epoch: "off", "literal", or "tags" to let
            in only classes that a photo is tagged with, see
            :class:`~pgnn_geo.training.mutual.MutualComplement`.
        mutual_start (int): First epoch after which labels are rewritten.
        mutual_confidence (float, optional): Probability from which on a prediction rewrites a
            label.
        uncertain (float, optional): Share of the background score above which background of the
            labels is not learnt, by the maps that "run" and "label" leave beside them, see
            :func:`~pgnn_geo.labels.certainty.certain_labels`; null to learn all of it.
        true_masks (float): Share of the photos that are learnt from their true masks.
        drawn (str, optional): What people drew for some photos: a folder of label images ID.png,
            255 where nothing is drawn, or a COCO JSON file with boxes around all of their objects.

    Raises:
        InputError: If a share is out of range, what people drew would be rewritten, or the network
            has no such argument.
    """

    eval_split: str | None = "val"
    network: Annotated[dict[str, Any], SEGMENTATION_NETWORK] = field(default_factory=dict)
    train: SegmentationTrainingConfig = RECIPES["short"]
    mutual: Literal["off", "literal", "tags"] = "off"
    mutual_start: int = 1
    mutual_confidence: float | None = None
    uncertain: float | None = 0.5
    true_masks: float = 0.0
    drawn: str | None = None

    def __post_init__(self) -> None:
        if self.uncertain is not None and not 0 < self.uncertain <= 1:
            raise InputError(f"'uncertain' must lie in (0, 1], got {self.uncertain}")
        if not 0 <= self.true_masks <= 1:
            raise InputError(f"'true_masks' must lie in [0, 1], got {self.true_masks}")
        for name in ("true_masks", "drawn"):
            if self.mutual != "off" and (value := getattr(self, name)):
                clash = f"{name}={value}, mutual='{self.mutual}': the latter rewrites the former"
                raise InputError(f"{clash}; want one of the two")
        object.__setattr__(self, "network", SEGMENTATION_NETWORK.complete(self.network))
        if isinstance(self.source, TorchvisionSource):
            self._check_torchvision()

    def _check_torchvision(self) -> None:
        """Refuse what is of DeepLab-v2."""
        name = self.source.name
        for key, usual in SEGMENTATION_NETWORK.defaults.items():
            if key not in ("architecture", "weights") and self.network[key] != usual:
                raise InputError(
                    f"{key}={self.network[key]!r} is of {DEEPLAB_V2}; {name} has its own"
                )
        train = self.train
        whole = train.augment == "crop" and train.freeze_stages == 0 and train.train_stride is None
        if not whole:
            raise InputError(
                f"{name} has no frozen stages and no other stride: want the "
                "recipe 'light', or augment='crop', freeze_stages=0 and train_stride=null"
            )

    @property
    def source(self) -> BackboneSource | TorchvisionSource:
        """Where the weights come from that the network starts from."""
        architecture, weights = self.network["architecture"], self.network["weights"]
        if architecture == DEEPLAB_V2:
            return BackboneSource(self.network["backbone"], weights)
        return TorchvisionSource(architecture, weights)

    def build_network(self, num_classes: int) -> SegmentationNetwork:
        """Build the network, with the head and the frozen stages of the training."""
        if isinstance(self.source, TorchvisionSource):
            return TorchvisionSegmentation(self.source.name, num_classes, self.source.weights)
        options = {name: value for name, value in self.network.items() if name != "architecture"}
        return DeepLabV2(
            num_classes=num_classes,
            head=self.train.head,
            freeze_stages=self.train.freeze_stages,
            normalize=self.train.normalize,
            propagation=self.train.propagation,
            **options,
        )

    def on(self, data: DataConfig, labels: str) -> "SegmentConfig":
        """Return the whole configuration for photos and their labels."""
        return SegmentConfig(data=data, labels=labels, **vars(self))


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(Stage2Config):
    """Everything that decides the outcome of stage 2: a :class:`Stage2Config` and what it is for.

    Args:
        data (DataConfig): The photos to train on.
        labels (str): Folder of their label images, or :obj:`"truth"` for true masks.
    """

    data: DataConfig
    labels: str

    @property
    def measured(self) -> DataConfig | None:
        """Return the photos to measure on, if there are any that have masks."""
        if self.eval_split is None:
            return None
        splits = self.data.has_splits
        data = replace(self.data, split=self.eval_split) if splits else self.data
        return data if data.has_masks() else None


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the outcome of :func:`~pgnn_geo.app.pipeline.run`.

    There are two ways to attention maps. In the *frozen* flow the backbone stays as it is:
    evidence of classes is fitted to its features and travels along the edges of the photos'
    graphs, see :mod:`~pgnn_geo.labels.frozen`; its baseline is the class activation maps of the
    tags' classifier. In the *trained* flow a network is trained on tags, with or without a graph
    of patches, and its baseline is the same network without a graph, trained on tags alone for as
    many epochs, whose maps are not propagated. Stage 2 learns the labels of :obj:`model`; without
    :obj:`segment` the run ends with them.

    Args:
        data (DataConfig): The photos and tags.
        flow (str): "frozen": fit evidence to a pretrained backbone's features; "trained": train a
            net.
        model (str): "pgnn", or "cam" for the baseline alone.
        baseline (bool): Make and measure the baseline as well.
        network (dict): Arguments of the network, a :class:`~pgnn_geo.nn.PGNN`; of the frozen flow,
            :obj:`backbone` and :obj:`weights` alone.
        features (FrozenFeatureConfig): How the frozen backbone sees photos.
        evidence (EvidenceConfig): How evidence is fitted to its features and passed on.
        train (AttentionTrainingConfig): Hyper-parameters of training, in the trained flow.
        maps (MapConfig): How attention maps are inferred by a trained network.
        labels (LabelConfig): How label images are made from the P-GNN's maps.
        cam_labels (LabelConfig): How they are made from the baseline's.
        segment (Stage2Config, optional): Stage 2.
        patches (str or BoxConfig): Of the trained flow: what the nodes of the network's graph are.

    Raises:
        InputError: If a value is no such thing, does not fit the network or is not of the flow.
    """

    data: DataConfig
    flow: FlowName = "frozen"
    model: ModelName = "pgnn"
    baseline: bool = False
    network: Annotated[dict[str, Any], NETWORK] = field(default_factory=dict)
    features: FrozenFeatureConfig = field(default_factory=FrozenFeatureConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    train: AttentionTrainingConfig = field(default_factory=AttentionTrainingConfig)
    maps: MapConfig = field(default_factory=MapConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    cam_labels: LabelConfig = CAM_LABELS
    segment: Stage2Config | None = field(default_factory=Stage2Config)
    patches: Patches = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", NETWORK.complete(self.network))
        if self.flow not in get_args(FlowName) or self.model not in get_args(ModelName):
            raise InputError(
                f"flow={self.flow!r}, model={self.model!r}: want one of {get_args(FlowName)} and "
                f"one of {get_args(ModelName)}"
            )
        if self.flow == "frozen":
            self._check_frozen()
            return
        if self.boxes is None and self.patches not in ("none", "grid"):
            raise InputError(f"patches={self.patches!r}: want 'none', 'grid' or a BoxConfig")
        if self.patches == "none":
            if self.train.node_classes != "none":
                raise InputError(
                    f"node_classes='{self.train.node_classes}': patches='none' has no nodes"
                )
            return
        if self.network["layers"] < 1:
            raise InputError(
                f"layers={self.network['layers']}: a graph of patches has 1 or more; "
                "patches='none' has no graph"
            )
        if self.boxes is not None and self.train.node_classes != "none":
            raise InputError(
                f"patches='boxes' have classes of their own; node_classes="
                f"'{self.train.node_classes}' is for a grid"
            )
        embedded, known = self.network["class_embedding"], self.train.node_classes != "none"
        if self.boxes is None and (embedded is not None) != known:
            raise InputError(
                f"class_embedding='{embedded}', node_classes='{self.train.node_classes}': classes "
                "of a grid's cells need both, what they do and where they come from"
            )

    def _check_frozen(self) -> None:
        """Refuse what has no meaning without training, and features that know nothing."""
        default = {"train": AttentionTrainingConfig(), "maps": MapConfig(), "patches": "none"}
        for name in default:
            # As JSON: a sequence may come as a list where the default is a tuple.
            given, usual = (
                json.dumps(each, default=asdict) for each in (getattr(self, name), default[name])
            )
            if given != usual:
                raise InputError(
                    f"{name}: of the trained flow, not of the frozen one; want flow='trained'. The "
                    "patches of the frozen flow's graph are evidence.grid."
                )
        own = {name: self.network[name] for name in ("backbone", "weights")}
        if self.network != NETWORK.defaults | own:
            raise InputError(
                "network: the frozen flow takes its backbone and weights alone, the rest is of "
                "training; want flow='trained'. The stride of the features is features.stride."
            )
        if self.source.weights is None:
            raise InputError(
                "network.weights=None: the frozen flow compares places by what a pretrained "
                "backbone says of them; want weights, or flow='trained'"
            )

    @property
    def names(self) -> tuple[ModelName, ...]:
        """What label images are made of, the baseline first."""
        if self.model == "cam":
            return ("cam",)
        return ("cam", "pgnn") if self.baseline else ("pgnn",)

    @property
    def boxes(self) -> BoxConfig | None:
        """Return the patches, if they are boxes."""
        return self.patches if isinstance(self.patches, BoxConfig) else None

    @property
    def source(self) -> BackboneSource:
        """Where the backbone comes from."""
        return BackboneSource(self.network["backbone"], self.network["weights"])

    def build_network(self, name: ModelName, num_classes: int) -> PGNN:
        """Build a model with its patch graph; the baseline has none."""
        options = dict(self.network)
        if name == "cam" or self.patches == "none":
            options["layers"] = 0
        elif self.boxes is not None:
            options |= {"box_size": self.boxes.size, "top_k": self.boxes.top_k}
        return PGNN(num_classes=num_classes, **options)

    def train_of(self, name: ModelName) -> AttentionTrainingConfig:
        """Return how a model is trained."""
        if name == "pgnn":
            return self.train
        epochs = self.train.epochs + self.train.completion_epochs
        return replace(self.train, epochs=epochs, completion_epochs=0, complementary="off")

    def maps_of(self, name: ModelName) -> MapConfig:
        """Return how the maps of a model are inferred."""
        train = self.train
        maps = self.maps.settled(train.size, train.group_size, train.seed)
        return maps if name == "pgnn" else replace(maps, **CAM_MAPS)

    def labels_of(self, name: ModelName) -> LabelConfig:
        """Return how the labels of a model are made from its maps."""
        return self.labels if name == "pgnn" else self.cam_labels
