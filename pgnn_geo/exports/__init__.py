"""Label images in the files of other tools; see :obj:`EXPORTS` for which."""

from pgnn_geo.exports.base import Export, Labelled
from pgnn_geo.exports.registry import EXPORTS
from pgnn_geo.exports.write import check_exports, write_exports

__all__ = ["EXPORTS", "Export", "Labelled", "check_exports", "write_exports"]
