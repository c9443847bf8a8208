"""The pipeline: from a task file to a tuned, measured and reported expert."""

from kshot.pipeline.export import Exported, export_expert
from kshot.pipeline.export_data import DataExport
from kshot.pipeline.run import GOALS, Goal, RunResult, run

__all__ = ["GOALS", "DataExport", "Exported", "Goal", "RunResult", "export_expert", "run"]
