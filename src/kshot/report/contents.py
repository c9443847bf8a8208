"""What a report shows: the contents of a run folder as frozen dataclasses, without a word of prose."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kshot.report.parts.choice import Choice
from kshot.report.parts.cost import Cost
from kshot.report.parts.data import SelectedData
from kshot.report.parts.evaluation import Evaluation
from kshot.report.parts.experts import Selection
from kshot.report.parts.reading import Missing
from kshot.report.parts.routing import ExpertUse
from kshot.report.parts.training import Training


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything a run folder holds; a part that is not there says why and what makes it.

    Attributes:
        name: Of the task.
        base_model: As in the task file.
        seed: Of the run.
        similarity: How adapters were compared, `delta`, `paper` or `fingerprint`.
        config: The resolved task file.
        environment: What the run ran on.
        cost: Of each finished stage.
        choice: Which arm is delivered; None where the run did not choose.
    """

    name: str
    base_model: str
    seed: int
    similarity: str
    config: str
    environment: Mapping[str, Any]
    cost: Cost
    selection: Selection | Missing
    data: SelectedData | Missing
    training: tuple[Training, ...] | Missing
    choice: Choice | None
    evaluation: Evaluation | Missing
    expert_use: ExpertUse | Missing
