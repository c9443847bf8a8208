"""A run from task file to report, or to an earlier stage; what is finished and unchanged is not run again."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from kshot.atomic import write_json
from kshot.config import TaskConfig, read_task
from kshot.engine import Engine
from kshot.evaluation.sandbox import unsafe_code
from kshot.events import WHOLE_RUN, LoggedProgress
from kshot.pipeline.arms import ARMS
from kshot.pipeline.choice_stage import check_folds, choice_made, choice_reads, run_choice
from kshot.pipeline.data_stage import data_reads, run_data
from kshot.pipeline.environment import describe_environment
from kshot.pipeline.evaluation_stage import arm_reads, check_sandbox, run_arm, write_results
from kshot.pipeline.experts_stage import check_scoring, experts_reads, run_experts
from kshot.pipeline.folds import KEPT
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.screening_stage import is_ordered, run_screening, screening_reads
from kshot.pipeline.training_stage import run_training, trained_stages, training_reads
from kshot.progress import Progress, Silent
from kshot.report import write_report
from kshot.run_folder import CONFIG, ENVIRONMENT, REPORT, RunFolder, chosen_adapter
from kshot.tracking import check_tracker

Goal = Literal["screening", "experts", "data", "training", "eval", "report"]
GOALS: tuple[Goal, ...] = ("screening", "experts", "data", "training", "eval", "report")


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run ended.

    Attributes:
        folder: The run folder.
        results: The result table, an entry an arm; empty without test rows or where the run ended before.
    """

    folder: Path
    results: list[dict[str, Any]]

    @property
    def expert(self) -> Path | None:
        """Folder of the PEFT adapter that is handed over; None where the base model is best as it is.

        Raises:
            RunFolderError: The run ended before the training.
        """
        return chosen_adapter(RunFolder.read_only(self.folder))

    @property
    def choice(self) -> dict[str, Any] | None:
        """Which arm is handed over and why, as in `choice/choice.json`; None where none is chosen yet."""
        return choice_made(RunFolder.read_only(self.folder))

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / REPORT


def run(
    task: str | Path | TaskConfig,
    out: str | Path,
    *,
    until: Goal = "report",
    seed: int | None = None,
    allow_unsafe_code: bool = False,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Run the pipeline.

    Args:
        task: A task file, or a task whose paths are resolved.
        out: The run folder; a run that was killed goes on where it stood.
        until: The last stage to run.
        seed: In place of the task's.
        allow_unsafe_code: Where bubblewrap is absent, let the scorers `code` and `sql` run what models write
            with the rights of this process, under limits of time and memory alone.
        engine: Whose workers score the adapters and embed the pool, such as `kshot.engine.RayEngine`; None:
            this process.
        progress: Where to show what is going on.

    Raises:
        KshotError: The input cannot be used; earlier output stays as it was.
    """
    progress = progress or Silent()
    config = task if isinstance(task, TaskConfig) else read_task(task)
    config = config if seed is None else config.model_copy(update={"seed": seed})
    inputs = Inputs(config, progress, engine)
    folder = RunFolder(out)
    inputs.progress = LoggedProgress(folder.event, progress)
    with folder.watched(WHOLE_RUN, until=until), unsafe_code(allow_unsafe_code):
        return _run(inputs, folder, until)


def _run(inputs: Inputs, folder: RunFolder, until: Goal) -> RunResult:
    config, goal = inputs.task, GOALS.index(until)
    _check(inputs, folder, goal)
    folder.write_text(
        CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    )
    write_json(folder.path(ENVIRONMENT), describe_environment())
    if _orders(inputs, goal):
        _once(folder, "screening", screening_reads(inputs), partial(run_screening, inputs, folder))
    if goal >= GOALS.index("experts"):
        _once(folder, "experts", experts_reads(inputs), partial(run_experts, inputs, folder))
    if goal >= GOALS.index("data"):
        _once(folder, "data", data_reads(inputs), partial(run_data, inputs))
    if goal >= GOALS.index("training"):
        _train(inputs, folder)
    results = _evaluate(inputs, folder) if goal >= GOALS.index("eval") else []
    if until == "report":
        write_report(folder)
    return RunResult(folder.root, results)


def _check(inputs: Inputs, folder: RunFolder, goal: int) -> None:
    """Find what would fail in a stage that is about to run, before anything is written."""
    if goal >= GOALS.index("training"):
        check_tracker(inputs.task.training.report_to)
        check_folds(inputs)
    if _orders(inputs, goal) and not folder.is_finished("screening", screening_reads(inputs)):
        _ = inputs.lm
    scores = goal >= GOALS.index("experts") and not folder.is_finished("experts", experts_reads(inputs))
    if scores or (goal >= GOALS.index("eval") and inputs.test):
        check_sandbox(inputs)
    if scores:
        check_scoring(inputs)
    if goal >= GOALS.index("data") and not folder.is_finished("data", data_reads(inputs)):
        inputs.check_budget()


def _orders(inputs: Inputs, goal: int) -> bool:
    return is_ordered(inputs) or goal == GOALS.index("screening")


def _once(folder: RunFolder, stage: str, reads: str, work: Callable[[Path], None]) -> None:
    if folder.is_finished(stage, reads):
        folder.event("reused", stage=stage)
        return
    with folder.stage(stage, reads) as draft:
        work(draft)


def _train(inputs: Inputs, folder: RunFolder) -> None:
    for stage in trained_stages(inputs):
        reads = training_reads(inputs, folder, stage)
        _once(folder, stage, reads, partial(run_training, inputs, folder, stage))
        for checkpoints in folder.root.glob(f".{stage}.checkpoints-*"):
            shutil.rmtree(checkpoints)
    _once(folder, "choice", choice_reads(inputs, folder), partial(run_choice, inputs, folder))
    for kept in folder.root.glob(f"{KEPT}*"):
        shutil.rmtree(kept)


def _evaluate(inputs: Inputs, folder: RunFolder) -> list[dict[str, Any]]:
    if not inputs.test:
        if inputs.task.test is None:
            inputs.progress.say("no test rows given: nothing is measured")
        return []
    for arm in ARMS:
        reads = arm_reads(inputs, folder, arm)
        _once(folder, f"eval/{arm}", reads, partial(run_arm, inputs, folder, arm))
    table: list[dict[str, Any]] = write_results(folder)["table"]
    return table
