"""The report: a run folder as one HTML page that opens offline, answers first."""

from kshot.report.render import write_report

__all__ = ["write_report"]
