"""Sphinx configuration."""

import os
from importlib.metadata import version as _version

project = "pgnn_geo"
author = "The pgnn_geo authors"
copyright = "2026, The pgnn_geo authors"
release = _version("pgnn-geo")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # the Args sections give types, as PyG's do
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # PyG's and Lightning's own would read as ours
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_custom_sections = [("Shapes", "notes_style")]
napoleon_numpy_docstring = False
# Names of other libraries become links on Read the Docs, or if asked: elsewhere a build must not
# need a network.
if "READTHEDOCS" in os.environ or "PGNN_INTERSPHINX" in os.environ:
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "torch_geometric": ("https://pytorch-geometric.readthedocs.io/en/latest", None),
        "torchvision": ("https://docs.pytorch.org/vision/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }
html_theme = "furo"
html_title = f"pgnn_geo {release}"
exclude_patterns = ["_build"]
