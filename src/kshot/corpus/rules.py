"""Rules beside relevance and distinctness: how much one source may give, and how long a row may be."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Rule(Protocol):
    """Decides about rows in the order of their visit."""

    def refuse(self, row: int) -> str | None:
        """Return why a row may not be kept, None if it may."""
        ...

    def keep(self, row: int) -> None:
        """Take note that a row was kept."""
        ...


@dataclass(eq=False)
class SourceQuota:
    """Keeps at most so many rows of each source.

    Attributes:
        source_of: The source of a row.
        max_rows: Of each source.
    """

    source_of: Callable[[int], str]
    max_rows: int
    _kept: Counter[str] = field(default_factory=Counter)

    def refuse(self, row: int) -> str | None:
        """Refuse rows of a source that has given its share."""
        return "source_full" if self._kept[self.source_of(row)] >= self.max_rows else None

    def keep(self, row: int) -> None:
        """Count the row for its source."""
        self._kept[self.source_of(row)] += 1


@dataclass(eq=False)
class LengthLimits:
    """Keeps rows of a length within limits; only rows that would be kept are measured.

    Attributes:
        num_tokens: The length of a row.
        min_tokens: Shorter rows are refused.
        max_tokens: Longer rows are refused.
    """

    num_tokens: Callable[[int], int]
    min_tokens: int
    max_tokens: int

    def refuse(self, row: int) -> str | None:
        """Refuse rows that are too short or too long."""
        length = self.num_tokens(row)
        if length < self.min_tokens:
            return "too_short"
        return "too_long" if length > self.max_tokens else None

    def keep(self, row: int) -> None:
        """Nothing depends on the rows kept."""


def refusal(rules: Sequence[Rule], row: int) -> str | None:
    """Return the reason of the first rule that refuses a row, None if all let it pass."""
    return next((reason for rule in rules if (reason := rule.refuse(row))), None)
