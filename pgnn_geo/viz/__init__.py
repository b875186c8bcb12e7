"""Pictures of what the models see."""

from pgnn_geo.viz.overlays import overlay, overlay_sheet

__all__ = ["overlay", "overlay_sheet"]
