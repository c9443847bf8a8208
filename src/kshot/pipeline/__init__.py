"""The pipeline: from a task file to a tuned, measured and reported expert."""

from kshot.pipeline.export import Exported, export_expert
from kshot.pipeline.export_data import DataExport
from kshot.pipeline.export_gguf import export_gguf
from kshot.pipeline.export_merged import Merged, export_merged
from kshot.pipeline.run import GOALS, Goal, RunResult, run

__all__ = [
    "GOALS",
    "DataExport",
    "Exported",
    "Goal",
    "Merged",
    "RunResult",
    "export_expert",
    "export_gguf",
    "export_merged",
    "run",
]
