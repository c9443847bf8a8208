"""Near matches: texts that hold most of a question's words, in its order, by n-grams.

T: questions, H: distinct n-grams of the questions, W: words of a block of texts.

A word counts if it is the question's own. What more than ten questions say alike ("Choose the correct answer
to the question", "which of the following is") is a template that any row of the same form holds.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kshot.text_form import words_of

NGRAM = 8  # Tülu 3 (arXiv 2411.15124, 3.2) and Llama 3; GPT-3 took 8 to 13 by the length of questions
LEAST_SHARE = 0.5  # of a question's own words, more than that is a match (Tülu 3)
# Of a short question two or three 8-grams can be all that it has, and half of it says too little:
# "(is an example of which of the following)" is 8 words of 10.
SHORT_WORDS, SHORT_SHARE = 16, 0.8
# Of fewer words than NGRAM the whole question must be there. Below 5 it says nothing: "caused by a virus".
LEAST_WORDS = 5
# As GPT-3 (appendix C) and NeMo Curator ignore n-grams that more than ten documents share; of few questions,
# such as five shots of one form, half of them.
TEMPLATE_TEXTS, TEMPLATE_SHARE, TEMPLATE_NGRAM = 10, 0.5, 5
_UNKNOWN = 0  # a word of no question, and the end of a text
_BASE = np.uint64(
    0x9E3779B97F4A7C15
)  # an odd number without pattern: 64-bit hashes of 8 words do not collide


@dataclass(frozen=True, slots=True)
class NearMatch:
    """A text and the question that it holds.

    Attributes:
        text: Its place among the texts compared.
        question: Place of the question it holds most of; the first of equals.
        share: How many of the question's own words stand in it, in n-grams of the question.
    """

    text: int
    question: int
    share: float


class QuestionIndex:
    """Finds the texts that hold most of one of many questions.

    The n-grams of the questions are hashed to 64 bits; a text costs one look-up a word, whatever the number
    of questions.

    Args:
        questions: Distinct texts.
    """

    def __init__(self, questions: Sequence[str]) -> None:
        own = list(_own_words([words_of(question) for question in questions]))
        self._own_T = np.array([sum(map(len, runs)) for runs in own], dtype=np.int64)
        self._words: dict[str, int] = {}
        postings: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for place, runs in enumerate(own):
            if self._own_T[place] < LEAST_WORDS:
                continue
            size, first = min(NGRAM, int(self._own_T[place])), 0
            for run in runs:
                ids = np.array([self._words.setdefault(word, len(self._words) + 1) for word in run])
                hashes, _ = _ngrams(ids, size)
                postings[size] += [
                    (hashed, place, first + start) for start, hashed in enumerate(hashes.tolist())
                ]
                first += len(run)
        self._tables = {size: _Table.of(rows) for size, rows in sorted(postings.items()) if rows}

    def matches(self, texts: Sequence[str]) -> list[NearMatch]:
        """Return the texts that hold more than the least share of a question, in order."""
        found = [[self._words.get(word, _UNKNOWN) for word in words_of(text)] for text in texts]
        lengths = [len(ids) + 1 for ids in found]
        ids_W = np.concatenate([np.array([*ids, _UNKNOWN]) for ids in found] or [np.zeros(0, dtype=int)])
        text_W = np.repeat(np.arange(len(texts)), lengths)
        covered = [table.covered(*_ngrams(ids_W, size), text_W, size) for size, table in self._tables.items()]
        best: dict[int, NearMatch] = {}
        for text, question, words in _count_words(covered):
            share = words / int(self._own_T[question])
            least = SHORT_SHARE if self._own_T[question] < SHORT_WORDS else LEAST_SHARE
            if share > least and (text not in best or share > best[text].share):
                best[text] = NearMatch(text, question, share)
        return [best[text] for text in sorted(best)]


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The n-grams of one size, and where they stand.

    Attributes:
        hashes: Sorted, distinct; (H,).
        starts: Where the places of each n-gram begin; one more at the end.
        questions: Of all places.
        words: The own word of the question at which each place begins.
    """

    hashes: np.ndarray
    starts: np.ndarray
    questions: np.ndarray
    words: np.ndarray

    @classmethod
    def of(cls, postings: list[tuple[int, int, int]]) -> "_Table":
        postings.sort()
        hashes = np.array([hashed for hashed, _, _ in postings], dtype=np.uint64)
        places = np.array([place for _, *place in postings], dtype=np.int64)
        hashes_H, starts = np.unique(hashes, return_index=True)
        return cls(hashes_H, np.append(starts, len(hashes)), places[:, 0], places[:, 1])

    def covered(self, hashes: np.ndarray, known: np.ndarray, text_W: np.ndarray, size: int) -> np.ndarray:
        """Return (text, question, own word) of every word that an n-gram of a text covers; (places, 3)."""
        at = np.searchsorted(self.hashes, hashes)
        at[at == len(self.hashes)] = 0
        hits = np.flatnonzero(known & (self.hashes[at] == hashes))
        # A text that says the same over and over covers no more words by it.
        _, once = np.unique(text_W[hits] * len(self.hashes) + at[hits], return_index=True)
        hits = hits[once]
        first, counts = self.starts[at[hits]], np.diff(self.starts)[at[hits]]
        ends = np.cumsum(counts)
        place = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - counts), counts)
        texts = np.repeat(text_W[hits], counts)
        rows = np.stack([texts, self.questions[place], self.words[place]], axis=1)
        rows = np.repeat(rows, size, axis=0)
        rows[:, 2] += np.tile(np.arange(size), len(place))
        return rows


def _count_words(covered: Sequence[np.ndarray]) -> Iterator[tuple[int, int, int]]:
    """Yield text, question and the number of distinct words covered, by text, then by question."""
    rows = np.concatenate([*covered, np.zeros((0, 3), dtype=np.int64)])
    pairs, counts = np.unique(np.unique(rows, axis=0)[:, :2], axis=0, return_counts=True)
    yield from (
        (text, question, count)
        for (text, question), count in zip(pairs.tolist(), counts.tolist(), strict=True)
    )


def _ngrams(ids_W: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of every n-gram, and whether all of its words are known."""
    count = max(len(ids_W) - size + 1, 0)
    hashes, known = np.zeros(count, dtype=np.uint64), np.ones(count, dtype=bool)
    for offset in range(size):
        part = ids_W[offset : offset + count]
        hashes = hashes * _BASE + part.astype(np.uint64)
        known &= part != _UNKNOWN
    return hashes, known


def _own_words(texts: Sequence[list[str]]) -> Iterator[list[list[str]]]:
    """Yield for each text the runs of words that are no template."""
    counts: Counter[tuple[str, ...]] = Counter()
    for words in texts:
        counts.update(set(_windows(words)))
    limit = min(TEMPLATE_TEXTS, TEMPLATE_SHARE * len(texts))
    for words in texts:
        shared = [False] * len(words)
        for start, window in enumerate(_windows(words)):
            if counts[window] > limit:
                shared[start : start + TEMPLATE_NGRAM] = [True] * TEMPLATE_NGRAM
        runs: list[list[str]] = [[]]
        for word, is_shared in zip(words, shared, strict=True):
            if is_shared:
                runs.append([])
            else:
                runs[-1].append(word)
        yield [run for run in runs if run]


def _windows(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[offset:] for offset in range(TEMPLATE_NGRAM)), strict=False)
