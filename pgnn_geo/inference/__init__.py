"""Trained networks run over photos: a segmenter, and whole folders."""

from pgnn_geo.inference.segmenter import Segmenter

__all__ = ["Segmenter"]
