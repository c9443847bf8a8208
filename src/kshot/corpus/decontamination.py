"""Pool rows that ask what a shot, a test row or a row of a benchmark asks, and so must not be trained on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from kshot.corpus.near_matches import QuestionIndex
from kshot.corpus.pool import Pool
from kshot.examples import Example
from kshot.text_form import fingerprint


@dataclass(frozen=True, slots=True)
class Match:
    """What a pool row matched.

    Attributes:
        kind: `exact`: it asks the same, apart from case, letter forms, spaces and sentence punctuation;
            `near`: it holds most of the words that make up the question, in n-grams.
        matched: Name of the row, such as `shot arc-12` or `test row arc-407`.
        share: The share of the question's own words that it holds; 1 for an exact match.
    """

    kind: Literal["exact", "near"]
    matched: str
    share: float

    def __str__(self) -> str:
        return (
            self.matched if self.kind == "exact" else f"{self.matched} (near, {self.share:.0%} of its words)"
        )


class KeptOut:
    """Rows that must stay out of the training data, and which rows match them.

    Exact: the fingerprints of the whole request (instruction and input) or of the bare question are equal; a
    bare question also matches a request that says nothing else. Near: as `QuestionIndex` finds the bare
    question, or the request where there is none, in the request and output of a row.

    Args:
        named: What each group is called, and its rows; of two matches the earlier row is named.
    """

    def __init__(self, named: Iterable[tuple[str, Sequence[Example]]]) -> None:
        self._asked: dict[str, str] = {}
        questions: dict[str, str] = {}
        for kind, examples in named:
            for number, example in enumerate(examples, start=1):
                name = f"{kind} {example.id or number}"
                for key in _keys(example):
                    self._asked.setdefault(key, name)
                questions.setdefault(_keys(example)[-1], name)
        self._names = list(questions.values())
        self._order = {name: place for place, name in enumerate(self._asked.values())}
        self._index = QuestionIndex(list(questions))

    def matches(self, rows: Sequence[Example]) -> dict[int, Match]:
        """Return what each matching row matched, by its place among `rows`."""
        near = self._index.matches([f"{row.request}\n{row.output}" for row in rows])
        found = {one.text: Match("near", self._names[one.question], one.share) for one in near}
        for place, row in enumerate(rows):
            names = [self._asked[key] for key in _keys(row) if key in self._asked]
            if names:
                found[place] = Match("exact", min(names, key=self._order.__getitem__), 1.0)
        return dict(sorted(found.items()))


def rows_to_avoid(
    pool: Pool,
    shots: Sequence[Example],
    test: Sequence[Example] = (),
    benchmarks: Mapping[str, Sequence[Example]] = MappingProxyType({}),
) -> dict[int, Match]:
    """Find the pool rows that ask what a shot, a test row or a row of a benchmark asks.

    Returns:
        For each such row what it matched; shots come first, then test rows, then benchmarks by their names.
    """
    kept_out = KeptOut(named_groups(shots, test, benchmarks))
    return {
        start + place: match
        for start, rows in pool.blocks()
        for place, match in kept_out.matches(rows).items()
    }


def named_groups(
    shots: Sequence[Example], test: Sequence[Example], benchmarks: Mapping[str, Sequence[Example]]
) -> Iterator[tuple[str, Sequence[Example]]]:
    """Yield what the rows of each group are called, and the rows."""
    yield "shot", shots
    yield "test row", test
    yield from ((f"row of {name}:", rows) for name, rows in benchmarks.items())


def _keys(example: Example) -> list[str]:
    """Fingerprints of the request and, where there is one, of the bare question, which comes last."""
    return [fingerprint(text) for text in (example.request, example.question) if text and text.strip()]
