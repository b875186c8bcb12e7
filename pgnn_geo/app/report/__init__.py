"""The report of one or several runs: one page with figures, pictures and explanations."""

from pgnn_geo.app.report.page import write_report
from pgnn_geo.app.report.runs import Run, read_run

__all__ = ["Run", "read_run", "write_report"]
