"""Label images in the files of other tools; see :obj:`EXPORTS` for which."""

from pgnn_geo.io.exports.base import Export, Labelled
from pgnn_geo.io.exports.registry import EXPORTS
from pgnn_geo.io.exports.write import check_exports, write_exports

__all__ = ["EXPORTS", "Export", "Labelled", "check_exports", "write_exports"]
