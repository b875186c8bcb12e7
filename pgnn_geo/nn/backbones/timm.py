"""Any model of timm that gives maps, ``timm:NAME`` or ``timm:NAME.TAG``."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pgnn_geo.errors import InputError
from pgnn_geo.nn.backbones.base import WholeBackbone
from pgnn_geo.nn.backbones.entries import DOORS, BackboneEntry
from pgnn_geo.nn.backbones.weights import NOT_STATED, PretrainedWeights, load_trunk

#: What parts of a tag say of the training, the first that fits: what was learned last decides what
#: the features have seen of people's work, what was before is named too.
_TRAINED_ON = {
    "openai": "image-text pairs",
    "laion": "image-text pairs",
    "datacomp": "image-text pairs",
    "metaclip": "image-text pairs",
    "dfn": "image-text pairs",
    "webli": "image-text pairs",
    "merged2b": "image-text pairs",
    "yfcc": "image-text pairs",
    "cc12m": "image-text pairs",
    "quickgelu": "image-text pairs",
    "lvd": "images alone (self-supervised)",
    "sat493m": "images alone (self-supervised)",
    "dino": "images alone (self-supervised)",
    "mae": "images alone (self-supervised)",
    "fcmae": "images alone (self-supervised)",
    "mim": "images alone (self-supervised)",
    "ijepa": "images alone (self-supervised)",
    "gluon_ssl": "images alone (self-supervised)",
    "sa1b": "masks drawn by people (SA-1B)",
    "ig": "hashtags of Instagram",
    "swag": "hashtags of Instagram",
    "jft": "JFT labels",
    "in1k": "ImageNet-1k labels",
    "in12k": "ImageNet-12k labels",
    "in21k": "ImageNet-21k labels",
    "in22k": "ImageNet-22k labels",
    "inat21": "iNaturalist labels",
}


class TimmMaps(nn.Module):
    """Two of the maps that a model of timm gives; tokens are folded.

    Of a network whose blocks all have one stride these are the maps after three quarters of its
    blocks and after all, else those of its last two stages.

    Args:
        model (torch.nn.Module): Has :obj:`forward_intermediates`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        info: Any = model.feature_info
        strides, count = [each["reduction"] for each in info], len(info)
        before = max(0, count * 3 // 4 - 1) if len(set(strides)) == 1 else count - 2
        self.stride, self.norm = strides[-1], True
        prune: Any = model.prune_intermediate_layers
        self.indices = prune([before, count - 1], prune_norm=False, prune_head=True)
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return both maps, normalised as the network does after its last block if it can."""
        run: Any = self.model.forward_intermediates
        maps: list[Tensor] = run(
            images, indices=self.indices, norm=self.norm, intermediates_only=True
        )
        return maps

    @torch.inference_mode()
    def try_out(self) -> int:
        """Return the number of channels, as an image that is no square shows.

        Raises:
            AssertionError, RuntimeError: If the network does not take it.
        """
        training = self.training
        image = torch.zeros(1, 3, 3 * self.stride, 5 * self.stride)
        try:
            try:
                last = self.eval()(image)[-1]
            except AssertionError:  # some say in this way that they do not normalise
                self.norm = False
                last = self(image)[-1]
        finally:
            self.train(training)
        if last.shape[2:] != (3, 5):
            raise AssertionError(
                f"an image of 3 x 5 strides gives a map of {tuple(last.shape[2:])}"
            )
        return last.size(1)


class TimmBackbone(WholeBackbone):
    """A model of timm. Another stride is another model with the same parameters.

    Args:
        name (str): The model's name, without a tag.
        state (mapping, optional): Its weights; random ones if not given.
        mean, std, scale: See :class:`~pgnn_geo.nn.Backbone`.

    Raises:
        InputError: If it gives no maps, takes photos of one size alone, or the weights do not fit.
    """

    def __init__(self, name: str, state: Mapping[str, Tensor] | None, **kwargs: Any):
        model, dilates = _create(name)
        if state is not None:
            # By timm's convention what maps older names to its own lies beside the model.
            adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
            load_trunk(model, state if adapt is None else adapt(dict(state), model))
        try:
            maps = TimmMaps(model)
            channels = maps.try_out()
        except (AttributeError, AssertionError, RuntimeError) as error:
            raise InputError(
                f"timm:{name} gives no maps of photos of any size ({error}); choose another model"
            ) from error
        strides = [8, 16, 32] if dilates and maps.stride == 32 else [maps.stride]
        super().__init__(maps, channels, strides, **kwargs)
        self.name = name

    def _set_output_stride(self, output_stride: int) -> None:
        if len(self.strides) == 1 or output_stride == (self.output_stride or self.largest_stride):
            return
        before = self.stages[0]
        assert isinstance(before, TimmMaps)
        maps = TimmMaps(_create(self.name, output_stride)[0])
        maps.norm = before.norm
        for own, other in zip(maps.parameters(), before.parameters(), strict=True):
            own.requires_grad_(other.requires_grad)  # which loading takes from it
        maps.load_state_dict(before.state_dict(keep_vars=True), assign=True)  # the same parameters
        self.stages[0] = maps.train(before.training)


def _create(name: str, output_stride: int | None = None) -> tuple[nn.Module, bool]:
    """Return a model for photos of any size, without its classifier, and whether it dilates."""
    timm = _timm()
    options = {"num_classes": 0, "pretrained": False}
    if output_stride is not None:
        return timm.create_model(name, output_stride=output_stride, **options), True
    with torch.device("meta"):  # to see what it takes, without the time for its weights
        takes = inspect.signature(type(timm.create_model(name, **options)).__init__).parameters
        try:
            timm.create_model(name, output_stride=16, **options)
            dilates = True
        except (TypeError, AssertionError, RuntimeError, NotImplementedError):
            dilates = False
    size = [each for each in ("dynamic_img_size", "strict_img_size") if each in takes][:1]
    return timm.create_model(name, **{k: k == "dynamic_img_size" for k in size}, **options), dilates


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError:
        raise InputError(
            "A backbone timm:NAME needs the package timm: pip install 'pgnn-geo[timm]'"
        ) from None


def trained_on(tag: str) -> str:
    """Return what a tag of timm says that weights were trained on, in the order of training.

    .. code-block:: python

        trained_on("laion2b_ft_in1k")  # "image-text pairs, then ImageNet-1k labels"
    """
    found = []
    for part in tag.split("_"):
        for start, words in _TRAINED_ON.items():
            if part.startswith(start) and words not in found:
                found.append(words)
                break
    return ", then ".join(found) or NOT_STATED


def timm_entry(name: str) -> BackboneEntry:
    """Return the entry of a model of timm.

    Args:
        name (str): The model's name, with the tag of weights or without.

    Raises:
        InputError: If timm is not installed or has no such model.
    """
    timm = _timm()
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        near = ", ".join(timm.list_models(f"*{model}*")[:5])
        raise InputError(
            f"'backbone' timm:{name} is none of timm's" + (f"; near it are {near}" if near else "")
        )
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{model}.*")]

    def weights(wanted: str) -> PretrainedWeights:
        chosen = tag if wanted == "DEFAULT" else wanted
        if (chosen and chosen not in tags) or not tags:
            raise InputError(
                f"'weights' for timm:{name} must be 'DEFAULT', None, a file's path or one of "
                f"{tags}, got {chosen or wanted!r}."
            )
        config = timm.get_pretrained_cfg(f"{model}.{chosen}".rstrip("."))
        return PretrainedWeights(
            f"timm {model}.{config.tag}",
            partial(_load, config),
            trained_on(config.tag),
            config.license or NOT_STATED,
            config.mean,
            config.std,
        )

    config = timm.get_pretrained_cfg(model)
    norm = {} if config is None else {"mean": config.mean, "std": config.std}
    return BackboneEntry(partial(TimmBackbone, model), weights, **norm)


def _load(config: Any) -> dict[str, Tensor]:
    """Return the state dict of weights from timm's cache or the network."""
    if config.custom_load:
        raise InputError(f"its weights {config.tag!r} are in a format of their own; pass a file")
    try:
        if config.hf_hub_id:
            models = importlib.import_module("timm.models")
            where = [config.hf_hub_id, *filter(None, [config.hf_hub_filename])]
            return dict(models.load_state_dict_from_hf(*where, weights_only=True))
        return dict(
            torch.hub.load_state_dict_from_url(config.url, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # of whatever library lies between here and the network
        raise InputError(
            f"Pretrained weights {config.hf_hub_id or config.url} could not be loaded ({error}). "
            "Connect to the network once, or pass the path of their file as weights."
        ) from error


DOORS["timm"] = timm_entry
