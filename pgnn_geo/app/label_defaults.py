"""How a saved model makes its labels, and what is given in place of that."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pgnn_geo.app.config import CAM_LABELS, CAM_MAPS, LabelConfig
from pgnn_geo.labels.maps import MapConfig
from pgnn_geo.nn import PGNN


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
            :class:`~pgnn_geo.app.config.LabelConfig`.
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
