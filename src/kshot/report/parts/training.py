"""What each training run did."""

from collections.abc import Sequence
from dataclasses import dataclass

from kshot.report.parts.reading import Missing, missing, parsing, pick
from kshot.run_folder import TRAINING, RunFolder

TRAINED = {"single": "best single expert", "expert": "mixture"}


@dataclass(frozen=True, slots=True)
class Training:
    """What one training run did; `losses` are nats per target token, one a step."""

    stage: str
    title: str
    losses: tuple[float, ...]
    num_rows: int
    num_tokens: int
    trainable_parameters: int
    seconds: float

    @property
    def first_loss(self) -> float | None:
        """Mean over the first tenth of the steps."""
        return _mean(self.losses[: self._tenth])

    @property
    def last_loss(self) -> float | None:
        """Mean over the last tenth of the steps."""
        return _mean(self.losses[-self._tenth :])

    @property
    def _tenth(self) -> int:
        return max(1, len(self.losses) // 10)


def read_training(run: RunFolder) -> tuple[Training, ...] | Missing:
    """Read the training runs that are finished.

    Raises:
        RunFolderError: A file is damaged or lacks something.
    """
    found = []
    for stage, title in TRAINED.items():
        path = run.path(stage, TRAINING)
        if path.is_file():
            result = run.read_json(stage, TRAINING)
            with parsing(path):
                values = result | {"losses": tuple(result["losses"]), "stage": stage, "title": title}
                found.append(pick(Training, values))
    return tuple(found) or missing(run, "Nothing is trained yet", "train")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
