"""The report: run folders as one HTML page that opens offline, answers first."""

from kshot.report.comparison import COMPARISON, write_comparison
from kshot.report.render import write_report

__all__ = ["COMPARISON", "write_comparison", "write_report"]
