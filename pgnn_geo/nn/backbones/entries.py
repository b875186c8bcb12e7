"""Backbones by name: what can be chosen, with which weights, and how it is built."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torchvision
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.models import WeightsEnum

from pgnn_geo.errors import InputError
from pgnn_geo.nn.backbones.base import Backbone
from pgnn_geo.nn.backbones.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PretrainedWeights,
    file_weights,
    is_file,
    no_names,
    torchvision_weights,
)
from pgnn_geo.registry import Registry

#: A name in :data:`BACKBONES`, or ``timm:NAME``.
BackboneName: TypeAlias = str


class BuildBackbone(Protocol):
    """Builds a backbone with the weights of a state dict, or random ones."""

    def __call__(  # noqa: D102
        self,
        state: Mapping[str, Tensor] | None,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float,
    ) -> Backbone: ...


@dataclass(frozen=True)
class BackboneEntry:
    """One choice of a backbone.

    Args:
        build (callable): See :class:`BuildBackbone`.
        weights (callable): Describes the weights of a name, of which :obj:`"DEFAULT"` is one, or
            raises an :class:`~pgnn_geo.errors.InputError`. (default: there are none)
        known (tuple of WeightsEnum): Weights of torchvision whose files are recognised.
            (default: none)
        mean, std (tuple): How photos are normalised for random weights, and for those of a file
            where there are none by default. (default: as for ImageNet)
    """

    build: BuildBackbone
    weights: Callable[[str], PretrainedWeights] = no_names
    known: tuple[WeightsEnum, ...] = ()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


#: All backbones but timm's; :obj:`BACKBONES.register("mine")(BackboneEntry(...))` adds one.
BACKBONES = Registry[BackboneEntry]("backbone")

#: What begins with one of these is looked up there.
DOORS: dict[str, Callable[[str], BackboneEntry]] = {}


def find_backbone(name: BackboneName) -> BackboneEntry:
    """Return the entry of a name.

    Raises:
        InputError: If there is none.
    """
    door, colon, rest = name.partition(":")
    if colon and door in DOORS:
        return DOORS[door](rest)
    if name not in BACKBONES:
        doors = ", ".join(f"{each}:NAME" for each in DOORS)
        raise InputError(
            f"'backbone' must be {doors} or one of {', '.join(BACKBONES)}, got {name!r}."
        )
    return BACKBONES[name]


def torchvision_entry(
    name: str,
    build: BuildBackbone,
    default: WeightsEnum | None = None,
    scales: Mapping[WeightsEnum, float] | None = None,
) -> BackboneEntry:
    """Return the entry of a model of torchvision, with all its weights there.

    Args:
        name (str): Its name in torchvision.
        build (callable): See :class:`BuildBackbone`.
        default (WeightsEnum, optional): What :obj:`"DEFAULT"` stands for, if not for what it does
            in torchvision.
        scales (mapping, optional): Weights whose features are multiplied, see
            :class:`~pgnn_geo.nn.Backbone`.
    """
    choices: Any = torchvision.models.get_model_weights(name)
    usual: WeightsEnum = choices.DEFAULT if default is None else default
    scales = scales or {}

    def weights(wanted: str) -> PretrainedWeights:
        if wanted != "DEFAULT" and wanted not in choices.__members__:
            raise InputError(
                f"'weights' for {name} must be 'DEFAULT', None, a file's path or one of "
                f"{sorted(choices.__members__)}, got {wanted!r}."
            )
        found = usual if wanted == "DEFAULT" else choices[wanted]
        return torchvision_weights(found, scales.get(found, 1.0))

    return BackboneEntry(build, weights, known=tuple(choices))


def resolve_weights(name: BackboneName, weights: str | None) -> PretrainedWeights | None:
    """Return what is known of the weights that :obj:`weights` names; nothing is loaded.

    Args:
        name (str): See :func:`build_backbone`.
        weights (str, optional): :obj:`"DEFAULT"`; a name of the model's own weights, such as
            :obj:`"IMAGENET1K_V1"` of torchvision's or a tag of timm's; the path of a file, see
            :func:`~pgnn_geo.nn.backbones.weights.file_weights`; or :obj:`None` for random ones.

    Raises:
        InputError: If the backbone or the weights are unknown.
    """
    entry = find_backbone(name)
    if weights is None:
        return None
    if not is_file(weights):
        return entry.weights(weights)
    try:
        usual = entry.weights("DEFAULT")
    except InputError:  # it has no weights of its own
        usual = PretrainedWeights(name, dict, mean=entry.mean, std=entry.std)
    return file_weights(weights, usual, entry.known)


def build_backbone(
    name: BackboneName = "vgg16",
    weights: str | None = "DEFAULT",
    output_stride: int | None = 16,
    freeze_stages: int | None = 0,
) -> Backbone:
    """Build a trunk.

    Args:
        name (str): One of :data:`BACKBONES`, or :obj:`"timm:NAME"` for a model of timm.
            (default: :obj:`"vgg16"`)
        weights (str, optional): See :func:`resolve_weights`. (default: :obj:`"DEFAULT"`)
        output_stride (int, optional): Stride of the feature map, one of
            :attr:`~pgnn_geo.nn.Backbone.strides`; the largest of them if not given.
            (default: :obj:`16`)
        freeze_stages (int, optional): Number of leading stages that are not trained; :obj:`None`
            for all of them. (default: :obj:`0`)

    Raises:
        InputError: If an argument is unknown, or the weights are neither there nor downloadable or
            do not fit.
    """
    entry, chosen = find_backbone(name), resolve_weights(name, weights)
    if chosen is None:
        backbone = entry.build(None, mean=entry.mean, std=entry.std, scale=1.0)
    else:
        options = {"mean": chosen.mean, "std": chosen.std, "scale": chosen.scale}
        try:
            backbone = entry.build(chosen.load(), **options)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(f"{name}, weights {weights}: {error}") from error
    stride = backbone.largest_stride if output_stride is None else output_stride
    backbone.set_output_stride(stride).freeze(freeze_stages)
    return backbone if chosen is None else backbone.freeze_norms()


class _NothingDrawn(TorchFunctionMode):
    """Leaves out what :mod:`torch.nn.init` does: weights that are read take its place.

    Of a VGG-16, built with its classifier, that takes longer than all the rest.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


class BackboneSource(NamedTuple):
    """Where a backbone comes from."""

    name: BackboneName
    weights: str | None  #: see :func:`resolve_weights`; a saved model without a name has its own

    def pretrained(self) -> PretrainedWeights | None:
        """Return what is known of its weights; nothing is loaded."""
        return resolve_weights(self.name, self.weights)

    def build(self) -> Backbone:
        """Build it, ready to be asked for features."""
        with nullcontext() if self.weights is None else _NothingDrawn():
            return build_backbone(self.name, self.weights, output_stride=None).eval()

    def kept(self) -> "BackboneSource":
        """Return what stands for it in a folder: weights of a file are of nobody else's name."""
        nameless = self.weights is not None and is_file(self.weights)
        return self._replace(weights=None) if nameless else self
