"""Pictures of what the models see."""

from pgnn_geo.viz.boxes import draw_boxes
from pgnn_geo.viz.overlays import overlay, overlay_sheet

__all__ = ["draw_boxes", "overlay", "overlay_sheet"]
