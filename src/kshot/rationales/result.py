"""What came of each row that was asked for a rationale, and what it took."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kshot.examples import Example
from kshot.rationales.checking import Verdict
from kshot.rationales.writer import Answer, Sampling


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer and what came of it.

    Attributes:
        sampling: How it was drawn.
        answer: What the model said.
        verdict: Whether its rationale is kept.
        cached: Whether it was read from disk.
    """

    sampling: Sampling
    answer: Answer
    verdict: Verdict
    cached: bool


@dataclass(frozen=True, slots=True)
class RowResult:
    """What came of one example that had no rationale.

    Attributes:
        index: Of the example.
        id: Of the example.
        attempts: In order; only the last can be accepted.
    """

    index: int
    id: str
    attempts: tuple[Attempt, ...]

    @property
    def accepted(self) -> bool:
        """Whether it has a rationale now."""
        return self.attempts[-1].verdict.rationale is not None

    @property
    def reason(self) -> str:
        """Why the last attempt was turned down; empty where it was accepted."""
        return self.attempts[-1].verdict.reason


@dataclass(frozen=True, slots=True)
class Usage:
    """What was asked of the writer, answers from disk left out.

    Attributes:
        answers: Answers made.
        cached: Answers read from disk.
        tokens_in: Of the prompts.
        tokens_out: Of the answers.
        uncounted: Answers whose tokens the endpoint did not tell.
    """

    answers: int
    cached: int
    tokens_in: int
    tokens_out: int
    uncounted: int

    def cost(self, price_in: float, price_out: float) -> float | None:
        """Return the cost at prices per million tokens; None where both are 0, which means unknown."""
        if not price_in and not price_out:
            return None
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


@dataclass(frozen=True, slots=True)
class RationaleResult:
    """Examples with rationales, and how they came about.

    Attributes:
        examples: In the order given; one that had a rationale, or got none, is as it was.
        rows: One an example that had none.
        usage: What it took.
    """

    examples: tuple[Example, ...]
    rows: tuple[RowResult, ...]
    usage: Usage

    @property
    def accepted(self) -> int:
        """Rationales written."""
        return sum(row.accepted for row in self.rows)

    @property
    def reasons(self) -> dict[str, int]:
        """Why rows stayed without a rationale, most frequent reason first."""
        return dict(Counter(row.reason for row in self.rows if not row.accepted).most_common())


def usage_of(rows: Sequence[RowResult]) -> Usage:
    """Add up what the rows took."""
    attempts = [attempt for row in rows for attempt in row.attempts]
    new = [attempt.answer for attempt in attempts if not attempt.cached]
    return Usage(
        answers=len(new),
        cached=len(attempts) - len(new),
        tokens_in=sum(answer.tokens_in or 0 for answer in new),
        tokens_out=sum(answer.tokens_out or 0 for answer in new),
        uncounted=sum(answer.tokens_in is None or answer.tokens_out is None for answer in new),
    )
