"""The pool: open rows with their source, and which of them match a shot or a test example."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kshot.corpus.fingerprint import fingerprint
from kshot.errors import ConfigError
from kshot.examples import HUB_SCHEME, Example, expand, read_examples


@dataclass(frozen=True, slots=True)
class SkippedRows:
    """How many rows of a source were left out, and why."""

    source: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Pool:
    """Open rows and where each came from.

    Attributes:
        examples: The rows, in the order read, without exact duplicates.
        sources: The source of each row: the stem of its file, or the Hub id.
        skipped: What was left out.
    """

    examples: tuple[Example, ...]
    sources: tuple[str, ...]
    skipped: tuple[SkippedRows, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def without(self, rows: Collection[int]) -> "Pool":
        """Return the pool without some rows; the others keep their order and move up."""
        kept = [index for index in range(len(self)) if index not in rows]
        return Pool(
            tuple(self.examples[index] for index in kept),
            tuple(self.sources[index] for index in kept),
            self.skipped,
        )


def read_pool(sources: Sequence[str]) -> Pool:
    """Read every row of files, patterns and Hub data sets, each distinct row once.

    Two rows are duplicates if request and output have the same fingerprint; the first one stays.

    Args:
        sources: What `read_examples` reads, each.

    Raises:
        ConfigError: No source is given.
        SourceError: A source is not there.
        ExampleError: A row is no example.
    """
    if not sources:
        raise ConfigError(
            "expected at least one source in pool, got none: name a file, a pattern or hf://owner/name"
        )
    seen: set[tuple[str, str]] = set()
    kept: list[tuple[Example, str]] = []
    duplicates: Counter[str] = Counter()
    for name, file in _files(sources):
        for example in read_examples(file):
            key = (fingerprint(example.request), fingerprint(example.output))
            if key in seen:
                duplicates[name] += 1
                continue
            seen.add(key)
            kept.append((example, name))
    return Pool(
        examples=tuple(example for example, _ in kept),
        sources=tuple(name for _, name in kept),
        skipped=tuple(SkippedRows(name, "exact_duplicate", count) for name, count in duplicates.items()),
    )


def _files(sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the address of every file and Hub data set."""
    for source in sources:
        if source.startswith(HUB_SCHEME):
            yield source.removeprefix(HUB_SCHEME).partition(":")[0], source
        else:
            yield from ((Path(file).stem, str(file)) for file in expand(source))


def rows_to_avoid(pool: Pool, shots: Sequence[Example], test: Sequence[Example]) -> dict[int, str]:
    """Find the pool rows that ask what a shot or a test example asks.

    Rows match if they share a fingerprint of the whole request (instruction and input) or of the bare
    question; a bare question also matches a request that says nothing else.

    Returns:
        For each such row what it matched, such as `shot arc-12` or `test row arc-407`; shots come first.
    """
    asked: dict[str, str] = {}
    for kind, examples in (("shot", shots), ("test row", test)):
        for number, example in enumerate(examples, start=1):
            for key in _keys(example):
                asked.setdefault(key, f"{kind} {example.id or number}")
    matches = (
        (row, [asked[key] for key in _keys(example) if key in asked])
        for row, example in enumerate(pool.examples)
    )
    return {row: sorted(found)[0] for row, found in matches if found}


def _keys(example: Example) -> list[str]:
    """Fingerprints of the request and of the bare question."""
    return [fingerprint(text) for text in (example.request, example.question) if text and text.strip()]
