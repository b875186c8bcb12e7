"""Segmentation networks by the name of their architecture."""

from collections.abc import Mapping
from typing import Any

from pgnn_geo.nn.deeplab import DeepLabV2
from pgnn_geo.nn.segmentation_network import SegmentationNetwork
from pgnn_geo.nn.torchvision_segmentation import TorchvisionSegmentation

DEEPLAB_V2 = "deeplab_v2"


def network_from_config(config: Mapping[str, Any]) -> SegmentationNetwork:
    """Build the network of a :attr:`~pgnn_geo.nn.SegmentationNetwork.config`, without weights.

    Args:
        config (mapping): One without :obj:`"architecture"` is of a :class:`DeepLabV2`.

    Raises:
        InputError: If there is no such architecture, or a value is out of range.
    """
    if config.get("architecture", DEEPLAB_V2) == DEEPLAB_V2:
        return DeepLabV2.from_config(config)
    return TorchvisionSegmentation.from_config(config)
