"""The arms, and what each answered to the same test rows."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kshot.report.parts.reading import Missing, missing, parsing, pick
from kshot.run_folder import PREDICTIONS, RESULTS, RunFolder

Outcome = Literal["all right", "all wrong", "mixed"]
OUTCOMES: tuple[Outcome, ...] = ("mixed", "all right", "all wrong")
TUNED_MIXTURE = "tuned_mixture"
_SHORT = {
    "base": "base",
    "best_single": "single",
    "best_single_tuned": "single tuned",
    "uniform_mixture": "uniform",
    TUNED_MIXTURE: "tuned mixture",
}


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of the result table; `p_value` is of its difference to the tuned mixture."""

    key: str
    title: str
    accuracy: float
    stderr: float | None
    n: int
    p_value: float | None
    other: Mapping[str, float]

    @property
    def short(self) -> str:
        """A name for narrow places."""
        return _SHORT.get(self.key, self.title.partition(" (")[0])


@dataclass(frozen=True, slots=True)
class Answer:
    """What an arm answered to a test row."""

    text: str
    correct: bool


@dataclass(frozen=True, slots=True)
class TestRow:
    """One test row: what was asked, what was right, and the answer of each arm in the table's order."""

    __test__ = False  # no test class, whatever pytest thinks of the name

    id: str
    request: str
    gold: str
    answers: tuple[Answer, ...]

    @property
    def outcome(self) -> Outcome:
        """Whether all arms, none or some are right."""
        right = sum(answer.correct for answer in self.answers)
        return "all right" if right == len(self.answers) else "mixed" if right else "all wrong"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The arms, and their answers to the same test rows."""

    arms: tuple[Arm, ...]
    rows: tuple[TestRow, ...]

    def correct(self, key: str) -> list[bool]:
        """Return right or wrong for each test row of an arm."""
        place = [arm.key for arm in self.arms].index(key)
        return [row.answers[place].correct for row in self.rows]


def read_evaluation(run: RunFolder, *, has_test: bool) -> Evaluation | Missing:
    """Read the arms.

    Args:
        run: Where they are.
        has_test: Whether the task names test rows.

    Raises:
        RunFolderError: A file is damaged or lacks something.
    """
    path = run.path("eval", RESULTS)
    if not path.is_file():
        tested = [file.parent.name for file in sorted(run.root.glob(f"eval/*/{PREDICTIONS}"))]
        so_far = ", ".join(tested) or "no arm"
        if not has_test:
            return missing(
                run, "The task file names no test rows, so nothing is measured: add 'test'", "eval"
            )
        return missing(run, f"Not every arm is tested yet (so far: {so_far})", "eval")
    table = run.read_json("eval", RESULTS)
    with parsing(path):
        arms = tuple(
            pick(Arm, one | {"key": one["arm"], "p_value": one["p_against_tuned_mixture"]})
            for one in table["table"]
        )
        if TUNED_MIXTURE not in [arm.key for arm in arms]:
            raise ValueError(f"no arm {TUNED_MIXTURE}")
    found = [run.read_json("eval", arm.key, PREDICTIONS) for arm in arms]
    with parsing(path.parent):
        asked = [[(row["id"], row["request"], row["gold"]) for row in one["predictions"]] for one in found]
        if any(one != asked[0] for one in asked) or any(
            (arm.accuracy, arm.n) != (one["summary"]["accuracy"], one["summary"]["n"])
            for arm, one in zip(arms, found, strict=True)
        ):
            return missing(run, "The result table is older than the answers it was made from", "eval")
        answers = zip(*([_answer(row) for row in one["predictions"]] for one in found), strict=True)
        rows = tuple(TestRow(*row, given) for row, given in zip(asked[0], answers, strict=True))
    return Evaluation(arms, rows)


def _answer(row: Mapping[str, Any]) -> Answer:
    return Answer(row["prediction"], row["correct"])


def count_outcomes(evaluation: Evaluation) -> dict[Outcome, int]:
    """Count the rows by how the arms did."""
    counts = Counter(row.outcome for row in evaluation.rows)
    return {outcome: counts[outcome] for outcome in OUTCOMES}
