"""How answers are scored, and arms compared."""

from typing import Any, Literal

from pydantic import Field, model_validator

from kshot.config.section import Section

FOLDS = 2  # of the shots: fewer there cannot be, and each more is one more training
SHOTS_FOR_FOLDS = 6  # with fewer a fold would train on two, and judge by as many

Scorer = Literal["exact_match", "normalised_match", "multiple_choice", "number", "code", "sql"]
Beside = Literal["letter", "generated"]


class EvaluationConfig(Section):
    """How arms are compared on the test rows."""

    multiple_choice: Literal["cloze", "listed"] = Field(
        default="cloze",
        description="likelihood of each choice after the bare question, or an answer to listed options",
    )
    beside: tuple[Beside, ...] = Field(
        default=(),
        description="also score choices by the likelihood of their letter, or by a generated answer, both to "
        "listed options; each costs a pass over the test rows",
    )
    max_new_tokens: int = Field(default=128, ge=1, description="longest generated answer")
    batch_size: int = Field(default=64, ge=1, description="rows decoded at once")
    folds: int | None = Field(
        default=None,
        ge=0,
        description="of the shots: on each, arms are compared after training on the others, and the best is "
        "handed over; each costs a training of fold_epochs; 0 hands over the tuned mixture unjudged; where "
        "absent 2, the fewest, if there are 6 shots",
    )
    fold_epochs: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of num_train_epochs that a fold trains: half, so that two folds cost what the "
        "mixture does; 1 judges the settings as they are",
    )
    fold_single: bool = Field(
        default=False,
        description="also compare the best single expert, tuned, which doubles the cost of the folds",
    )

    def num_folds(self, num_shots: int) -> int:
        """Return how many folds so many shots are put into; 0 for no comparison."""
        if self.folds is not None:
            return self.folds
        return FOLDS if num_shots >= SHOTS_FOR_FOLDS else 0

    def asked(self) -> dict[str, Any]:
        """Return the settings that an arm's answers depend on."""
        return self.model_dump(exclude={"folds", "fold_epochs", "fold_single"})

    @model_validator(mode="after")
    def _with_effect(self) -> "EvaluationConfig":
        if self.folds == 1:
            raise ValueError(
                "evaluation.folds must be 0, or 2 and more, got 1: without the only fold nothing is left to "
                "train on"
            )
        for name in ("fold_epochs", "fold_single"):  # the file of a finished run holds the defaults too
            if self.folds == 0 and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"evaluation.{name} has no effect with evaluation.folds: 0, remove it")
        return self
