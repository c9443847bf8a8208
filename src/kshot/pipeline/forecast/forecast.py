"""How long a run would take and how large it would be: amounts times rates, by stage."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kshot.config import TaskConfig, read_task
from kshot.pipeline.choice_stage import check_folds
from kshot.pipeline.forecast.amounts import Amount
from kshot.pipeline.forecast.counter import WorkCounter
from kshot.pipeline.forecast.memory import disk_bytes, resident_bytes, stage_bytes
from kshot.pipeline.forecast.plan import plan_run
from kshot.pipeline.forecast.probe import Probe, probe_run
from kshot.pipeline.inputs import Inputs
from kshot.progress import Progress, Silent
from kshot.tracking import check_tracker

# What a probe of seconds does not see: batches of another size than its own, padding, loading and saving.
UNSEEN_LOW, UNSEEN_HIGH = 0.9, 1.25


@dataclass(frozen=True, slots=True)
class StageForecast:
    """One stage.

    Attributes:
        stage: Its folder in the run.
        reused: Whether it is finished and read the same; then nothing is computed.
        amounts: What it computes.
        seconds: At least, at most; None where no probe can tell, as of a server.
        memory_bytes: Beside the loaded base model, at its peak.
    """

    stage: str
    reused: bool
    amounts: tuple[Amount, ...] = ()
    seconds: tuple[float, float] | None = (0.0, 0.0)
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """A whole run.

    Attributes:
        stages: In their order.
        seconds: Of all stages that a probe can tell of: at least, at most.
        memory_bytes: Peak of the process, or of the accelerator.
        disk_bytes: That the run folder grows by, at its peak.
        probe_seconds: That the probe took.
        notes: What the numbers do not hold.
    """

    stages: tuple[StageForecast, ...]
    seconds: tuple[float, float]
    memory_bytes: int
    disk_bytes: int
    probe_seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def forecast_run(
    task: str | Path | TaskConfig,
    out: str | Path,
    *,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Forecast:
    """Read and check all inputs, probe, and forecast the run; the run folder is neither made nor changed.

    Args:
        task: As in `run`.
        out: Likewise; stages that are finished there are reused.
        seed: Likewise.
        progress: Where to say what takes long.

    Raises:
        KshotError: As in `run`: the input cannot be used.
    """
    config = task if isinstance(task, TaskConfig) else read_task(task)
    config = config if seed is None else config.model_copy(update={"seed": seed})
    check_tracker(config.training.report_to)
    inputs = Inputs(config, progress or Silent())
    check_folds(inputs)
    plan = plan_run(inputs, Path(out))
    ahead = [stage.name for stage in plan if not stage.reused]
    if not ahead:
        done = tuple(StageForecast(stage.name, reused=True) for stage in plan)
        return Forecast(done, (0.0, 0.0), 0, 0, 0.0, ("only the report is written again",))
    if "data" in ahead:
        inputs.check_budget()
    counter = WorkCounter(inputs, Path(out), data_is_there="data" not in ahead)
    amounts = {stage: tuple(counter.amounts(stage)) for stage in ahead}
    _ = inputs.lm
    loaded, started = resident_bytes(), time.monotonic()
    inputs.progress.say("probing: a batch of scoring and of answers, a training step, a block of texts")
    probe = probe_run(counter, {one.kind for found in amounts.values() for one in found})
    probe_seconds = time.monotonic() - started
    stages = tuple(
        StageForecast(stage.name, reused=True)
        if stage.reused
        else _stage(counter, stage.name, amounts[stage.name], probe)
        for stage in plan
    )
    return Forecast(
        stages,
        (_total(stages, 0), _total(stages, 1)),
        loaded + max(stage.memory_bytes for stage in stages),
        disk_bytes(counter, ahead, probe),
        round(probe_seconds, 1),
        tuple(_notes(inputs, ahead)),
    )


def _stage(counter: WorkCounter, name: str, amounts: tuple[Amount, ...], probe: Probe) -> StageForecast:
    remote = name == "experts" and counter.inputs.task.experts.endpoint is not None
    seconds = None if remote else seconds_of(amounts, probe)
    return StageForecast(name, False, amounts, seconds, stage_bytes(counter, name, probe))


def seconds_of(amounts: Sequence[Amount], probe: Probe) -> tuple[float, float]:
    """Return the least and the most seconds of some work."""
    low = sum(one.low * probe.rates[one.kind].low for one in amounts)
    high = sum(one.high * probe.rates[one.kind].high for one in amounts)
    return round(low * UNSEEN_LOW, 1), round(high * UNSEEN_HIGH, 1)


def _total(stages: Sequence[StageForecast], end: int) -> float:
    return round(sum(stage.seconds[end] for stage in stages if stage.seconds), 1)


def _notes(inputs: Inputs, ahead: Sequence[str]) -> list[str]:
    notes = []
    if any(stage.startswith("eval") for stage in ahead) or "experts" in ahead:
        notes.append("answers: the least counts them as long as right ones, the most at full length")
    if "experts" in ahead and inputs.task.experts.endpoint:
        notes.append("experts: how long the server takes is not known")
    if "screening" in ahead:
        notes.append("screening: reading every adapter of the bank is not in the time")
    if "data" in ahead and inputs.task.data.budget:
        notes.append("data: comparing vectors is not in the time; what was embedded before is kept")
    return notes
