"""What a run cost: seconds and memory of each finished stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kshot.report.parts.reading import parsing
from kshot.run_folder import MARK, RunFolder

_TITLES = {
    "screening": "ordering the bank",
    "experts": "scoring the adapters",
    "data": "selecting rows",
    "single": "tuning the best single expert",
    "expert": "tuning the mixture",
    "choice": "choosing the arm",
    "eval": "testing",
}


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage; all of `eval` counts together.

    Attributes:
        stage: Its folder.
        title: What it does.
        seconds: Wall time.
        peak_memory_mb: The most that the process had held by its end, in MiB; None where it was not measured.
        peak_accelerator_mb: The same of the accelerator.
    """

    stage: str
    title: str
    seconds: float
    peak_memory_mb: float | None
    peak_accelerator_mb: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Every finished stage, in the order of the pipeline."""

    stages: tuple[StageCost, ...]

    @property
    def seconds(self) -> float:
        """Wall time of all."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_memory_mb(self) -> float | None:
        """The most that the process held, in MiB."""
        return _largest([stage.peak_memory_mb for stage in self.stages])

    @property
    def peak_accelerator_mb(self) -> float | None:
        """The same of the accelerator."""
        return _largest([stage.peak_accelerator_mb for stage in self.stages])


def read_cost(run: RunFolder) -> Cost:
    """Read the marks of the finished stages.

    Raises:
        RunFolderError: One is damaged or lacks something.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for path in sorted(run.root.glob(f"*/{MARK}")) + sorted(run.root.glob(f"*/*/{MARK}")):
        parts = path.relative_to(run.root).parts
        if not parts[0].startswith("."):  # drafts of a run that is going on
            mark = run.read_json(*parts)
            with parsing(path):
                _ = float(mark["seconds"])
            found.setdefault(parts[0], []).append(mark)
    order = [*_TITLES, *(stage for stage in found if stage not in _TITLES)]
    return Cost(tuple(_stage_cost(stage, found[stage]) for stage in order if stage in found))


def _stage_cost(stage: str, marks: list[Mapping[str, Any]]) -> StageCost:
    return StageCost(
        stage=stage,
        title=_TITLES.get(stage, stage),
        seconds=sum(float(mark["seconds"]) for mark in marks),
        peak_memory_mb=_largest([mark.get("peak_memory_mb") for mark in marks]),
        peak_accelerator_mb=_largest([mark.get("peak_accelerator_mb") for mark in marks]),
    )


def _largest(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
