"""The stages of a whole run, each with whether an earlier run has left it finished."""

from dataclasses import dataclass
from pathlib import Path

from kshot.pipeline.arms import ARMS
from kshot.pipeline.choice_stage import choice_reads
from kshot.pipeline.data_stage import data_reads
from kshot.pipeline.evaluation_stage import arm_reads
from kshot.pipeline.experts_stage import experts_reads
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.screening_stage import is_ordered, screening_reads
from kshot.pipeline.training_stage import trained_stages, training_reads
from kshot.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage in its turn.

    Attributes:
        name: Its folder in the run.
        reused: Whether it is there and read the same.
    """

    name: str
    reused: bool


def plan_run(inputs: Inputs, out: Path) -> list[PlannedStage]:
    """Return the stages of `kshot run` in order; nothing is written.

    What a stage reads follows from the task and from what the stages before it read, whether they ran or not.
    """
    run = _AsPlanned(out)
    stages = [run.planned("screening", screening_reads(inputs))] if is_ordered(inputs) else []
    stages.append(run.planned("experts", experts_reads(inputs)))
    stages.append(run.planned("data", data_reads(inputs)))
    for stage in trained_stages(inputs):
        stages.append(run.planned(stage, training_reads(inputs, run, stage)))
    stages.append(run.planned("choice", choice_reads(inputs, run)))
    for arm in ARMS if inputs.test else ():
        stages.append(run.planned(f"eval/{arm}", arm_reads(inputs, run, arm)))
    return stages


class _AsPlanned(RunFolder):
    """A run folder as it will be: later stages read of earlier ones what these would have read."""

    def __init__(self, root: Path) -> None:
        self._run = RunFolder.read_only(root)
        self._reads: dict[str, str] = {}

    def planned(self, stage: str, reads: str) -> PlannedStage:
        """Note what a stage reads; return whether it is finished."""
        self._reads[stage] = reads
        return PlannedStage(stage, self._run.is_finished(stage, reads))

    def wrote(self, stage: str) -> str:
        """Return what a later stage will find."""
        return self._reads[stage]
