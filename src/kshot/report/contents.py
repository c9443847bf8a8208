"""What a report shows: the contents of a run folder as frozen dataclasses, without a word of prose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["all right", "all wrong", "mixed"]
OUTCOMES: tuple[Outcome, ...] = ("mixed", "all right", "all wrong")
TUNED_MIXTURE = "tuned_mixture"


@dataclass(frozen=True, slots=True)
class Missing:
    """A part of the run that is not there.

    Attributes:
        reason: In words.
        command: What makes it.
    """

    reason: str
    command: str


@dataclass(frozen=True, slots=True)
class RankedAdapter:
    """An adapter's scores on the shots and its ranks; an infinite perplexity or NLL is None.

    `answer_first_ppl` is None as well where no shot has a rationale.

    `loss`, its `stderr` and `near_tie`, that the next adapter may be as good, are of the method `robust`
    alone.
    """

    name: str
    accuracy: float
    reasoning_ppl: float | None
    answer_first_ppl: float | None
    mean_nll: float | None
    rank_ppl: float
    rank_accuracy: float
    rank_sum: float
    loss: float | None
    stderr: float | None
    near_tie: bool | None


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates that could have been the experts; in every number, less is better.

    `similarity_rank` is of the method `paper` alone; `best_of`, the mean over the shots of the best member's
    loss, and `near_tie` of `robust`.
    """

    members: tuple[str, ...]
    quality: float
    similarity: float
    total: float
    similarity_rank: float | None
    best_of: float | None
    near_tie: bool | None


@dataclass(frozen=True, slots=True)
class Selection:
    """How the experts were chosen.

    Attributes:
        experts: Best first.
        best_single: First of the ranking.
        method: How adapters were ranked and groups weighed: `paper`, `balanced` or `robust`.
        why: The sentences that say why this group won.
        candidates: Names that groups were formed from.
        ranking: Every adapter, best first.
        groups: The best groups, best first.
        num_groups: Of all.
        excluded: Names left out by request.
        failures: For each adapter that could not be scored why.
        flagged: For each adapter that may have seen the task how.
        without_flagged: The experts that would be chosen without those; empty where nothing is flagged.
        num_shots: Shots that every adapter was scored on.
        num_rationales: How many of them have a rationale.
        similarity: Cosine of every two adapters, by name.
    """

    experts: tuple[str, ...]
    best_single: str
    method: str
    why: str
    candidates: tuple[str, ...]
    ranking: tuple[RankedAdapter, ...]
    groups: tuple[Group, ...]
    num_groups: int
    excluded: tuple[str, ...]
    failures: Mapping[str, str]
    flagged: Mapping[str, str]
    without_flagged: tuple[str, ...]
    num_shots: int
    num_rationales: int
    similarity: Mapping[str, Mapping[str, float]]

    def mark(self, name: str) -> str:
        """Return `expert`, `candidate` or nothing."""
        return "expert" if name in self.experts else "candidate" if name in self.candidates else ""


@dataclass(frozen=True, slots=True)
class KeptRow:
    """An open row that was selected, and the shot it is nearest to."""

    id: str
    source: str
    relevance: float
    nearest_shot: str
    request: str
    response: str


@dataclass(frozen=True, slots=True)
class NearCopy:
    """A row dropped because it copies a kept one."""

    id: str
    reason: str
    kept: str
    cosine: float


@dataclass(frozen=True, slots=True)
class SelectedData:
    """The selected rows, and what was left out.

    Attributes:
        rows: In the order kept.
        pool_rows: Distinct rows of the pool; 0 where the task asks for no data.
        duplicates_skipped: Exact copies met while reading the pool.
        sources: Rows kept of each source.
        avoided: Id and reason of each row that was not allowed.
        without_rationale: Rows that were not allowed since they have no rationale.
        dropped: Near-copies of kept rows.
    """

    rows: tuple[KeptRow, ...]
    pool_rows: int
    duplicates_skipped: int
    sources: Mapping[str, int]
    avoided: Mapping[str, str]
    without_rationale: int
    dropped: tuple[NearCopy, ...]


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
        seconds: Wall time of each finished stage.
    """

    name: str
    base_model: str
    seed: int
    similarity: str
    config: str
    environment: Mapping[str, Any]
    seconds: Mapping[str, float]
    selection: Selection | Missing
    data: SelectedData | Missing
    training: tuple[Training, ...] | Missing
    evaluation: Evaluation | Missing


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
