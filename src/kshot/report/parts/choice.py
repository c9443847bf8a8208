"""Which arm is delivered, by cross-validation on the shots: the choice that does no harm."""

from dataclasses import dataclass

from kshot.report.parts.reading import parsing, pick
from kshot.run_folder import CHOICE, RunFolder


@dataclass(frozen=True, slots=True)
class ChoiceArm:
    """An arm on the shots that it was not tuned on.

    Attributes:
        arm: Its key.
        title: Its name.
        loss: Mean over the shots.
        stderr: Of the loss.
        accuracy: Share of the shots; None where it was not measured.
        difference_to_best: Of the losses, paired by shot.
        difference_stderr: Of that difference.
    """

    arm: str
    title: str
    loss: float
    stderr: float | None = None
    accuracy: float | None = None
    difference_to_best: float | None = None
    difference_stderr: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        chosen: Key of the arm.
        title: Its name.
        reason: In words.
        folds: That the shots were split into; None or 0 where the arms were not compared.
        unit: Of the losses, such as `nats a token`.
        arms: What was compared; none where the shots were too few.
    """

    chosen: str
    title: str
    reason: str
    folds: int | None
    unit: str | None
    arms: tuple[ChoiceArm, ...]


def read_choice(run: RunFolder) -> Choice | None:
    """Read the choice; None where the run made none.

    Raises:
        RunFolderError: The file is damaged or lacks something.
    """
    path = run.path("choice", CHOICE)
    if not path.is_file():
        return None
    found = run.read_json("choice", CHOICE)
    with parsing(path):
        return Choice(
            chosen=found["chosen"],
            title=found["title"],
            reason=found["reason"],
            folds=found.get("folds"),
            unit=found.get("unit"),
            arms=tuple(pick(ChoiceArm, one) for one in found["arms"]),
        )
