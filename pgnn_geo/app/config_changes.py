"""Changes of a configuration whose defaults depend on something else: a recipe, a model."""

from collections.abc import Mapping
from dataclasses import fields, make_dataclass, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from pgnn_geo.app.config import CAM_LABELS, CAM_MAPS, LabelConfig
from pgnn_geo.labels.maps import MapConfig
from pgnn_geo.nn import PGNN
from pgnn_geo.training.segmentation_config import (
    RECIPES,
    RecipeName,
    SegmentationTrainingConfig,
)


def _optional(config: type[Any]) -> type[Any]:
    """Return a class with the fields of a configuration, each :obj:`None` unless it is given."""
    hints = get_type_hints(config)
    return make_dataclass(
        f"{config.__name__}Changes",
        [(entry.name, hints[entry.name] | None, None) for entry in fields(config)],
        namespace={"__doc__": config.__doc__, "__module__": __name__},
        frozen=True,
    )


if TYPE_CHECKING:
    SegmentationTrainingConfigChanges = SegmentationTrainingConfig
    MapConfigChanges = MapConfig
    LabelConfigChanges = LabelConfig
else:
    #: Values that take the place of a recipe's.
    SegmentationTrainingConfigChanges = _optional(SegmentationTrainingConfig)
    #: Values that take the place of a model's defaults.
    MapConfigChanges, LabelConfigChanges = _optional(MapConfig), _optional(LabelConfig)


def recipe_with(
    recipe: RecipeName, changes: SegmentationTrainingConfigChanges
) -> SegmentationTrainingConfig:
    """Return a recipe of stage 2 with every value of :obj:`changes` that is not :obj:`None`."""
    return RECIPES[recipe].changed(**_given(changes))


def label_defaults(
    model: PGNN,
    labelling: Mapping[str, Any],
    maps: MapConfigChanges | None = None,
    labels: LabelConfigChanges | None = None,
) -> tuple[MapConfig, LabelConfig]:
    """Return how a trained model's labels are made, with every value given that is not None.

    Args:
        model (PGNN): The model.
        labelling (mapping): What it was saved with: how its run makes them. Without it, a model
            that has no graph and was trained on tags alone is taken for a CAM, any other for a
            P-GNN, each with its default values.
        maps (MapConfig, optional): The values given of how attention maps are inferred.
        labels (LabelConfig, optional): The values given of how label images are made from them.
    """
    cam = model.config["layers"] == 0 and model.activation == "relu"
    start = replace(MapConfig(), **CAM_MAPS) if cam else MapConfig()
    start = MapConfig(**labelling["maps"]) if labelling else start
    return replace(start, **_given(maps)), label_config_of(labelling.get("labels"), cam, labels)


def label_config_of(
    saved: Mapping[str, Any] | None, cam: bool, labels: LabelConfigChanges | None = None
) -> LabelConfig:
    """Return how label images are made.

    Args:
        saved (mapping, optional): What the model was saved with.
        cam (bool): Whether it is a CAM, whose default values hold if nothing was saved.
        labels (LabelConfig, optional): The values given; those that are not None take the others'
            place.
    """
    default = CAM_LABELS if cam else LabelConfig()
    return replace(LabelConfig(**saved) if saved else default, **_given(labels))


def _given(changes: Any) -> dict[str, Any]:
    values = {} if changes is None else vars(changes)
    return {name: value for name, value in values.items() if value is not None}
