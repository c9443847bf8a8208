"""Open rows for the shots of a task, picked once and kept: the pool is read only for what is new.

M: rows of the shortlist.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from kshot.config import PoolSource
from kshot.corpus import (
    KeptOut,
    LengthLimits,
    Pool,
    PoolSurvey,
    embed_pool,
    load_encoder,
    pool_contents,
    read_pool,
    select_data,
    shortlist,
    survey_pool,
    text_of,
)
from kshot.corpus.diversity import RELEVANCE_WEIGHT
from kshot.errors import ConfigError
from kshot.examples import Example, read_examples, write_examples
from kshot.language_model import LanguageModel
from kshot.run_folder import digest
from suite.budget import Start
from suite.recipe import TaskRecipe
from suite.task_rows import TaskRows


@dataclass
class OpenRows:
    """The pool, and what was picked from it.

    Attributes:
        sources: Files, patterns or `hf://` data sets.
        folder: Where picked rows are kept.
        lm: Its tokens tell which rows are too long.
    """

    sources: Sequence[str]
    folder: Path
    lm: Callable[[], LanguageModel]
    _surveys: dict[str, PoolSurvey] = field(default_factory=dict)

    @cached_property
    def contents(self) -> str:
        """Hash of the pool's files."""
        return digest(pool_contents([PoolSource(path=source) for source in self.sources]))

    @cached_property
    def pool(self) -> Pool:
        """The open rows."""
        return read_pool(self.sources)

    def pick(
        self, recipe: TaskRecipe, rows: TaskRows, shots: Sequence[Example], start: Start, seed: int
    ) -> list[Example]:
        """Return the rows that join the shots; none that asks what any row of the task's own set asks.

        Args:
            recipe: Of the task.
            rows: Of the task.
            shots: Those that rows are picked for.
            start: How many are picked, and how.
            seed: Of random rows.

        Raises:
            ConfigError: The pool has fewer rows than the budget.
            SourceError: A part of the pool, or an encoder, cannot be read.
        """
        if not start.data.budget:
            return []
        asked = [one.to_row() for one in (*shots, *rows.test)]
        drawn = seed if start.rows == "random" else None
        key = digest([self.contents, asked, start.data.model_dump(mode="json"), drawn, recipe.max_length])
        kept = self.folder / f"{recipe.name}-seed{seed}-{key[:16]}.jsonl"
        if not kept.exists():
            survey = self._survey(recipe, rows)
            if drawn is None:
                indices = self._nearest(recipe, survey, shots, start)
            else:
                indices = self._random(recipe, survey, start.data.budget, drawn)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_examples(kept, self.pool.examples_at(indices))
        return read_examples(kept)

    def _nearest(
        self, recipe: TaskRecipe, survey: PoolSurvey, shots: Sequence[Example], start: Start
    ) -> np.ndarray:
        data = start.data
        encoder = load_encoder(data.encoder, prefix=data.encoder_prefix, base_model=self.lm)
        found_M, avoid = np.arange(len(self.pool)), survey.avoided
        if data.shortlist_encoder is None:
            vectors_MD = embed_pool(self.pool, encoder)
        else:
            cheap, wanted = load_encoder(data.shortlist_encoder), data.shortlist_factor * data.budget
            found_M, vectors_MD = shortlist(
                self.pool, shots, cheap, encoder, wanted, avoid=survey.avoided.tolist()
            )
            avoid = np.empty(0, dtype=np.int64)  # a shortlist holds no row that must be avoided
        selection = select_data(
            vectors_MD,
            encoder.encode([text_of(shot) for shot in shots]),
            budget=data.budget,
            threshold=data.threshold,
            strategy=data.strategy,
            relevance_weight=data.relevance_weight or RELEVANCE_WEIGHT,
            avoid=avoid,
            keys_N=survey.keys[found_M],
            rules=[
                LengthLimits(lambda place: self._length(recipe, int(found_M[place])), 0, recipe.max_length)
            ],
        )
        chosen: np.ndarray = found_M[selection.indices]
        return chosen

    def _random(self, recipe: TaskRecipe, survey: PoolSurvey, budget: int, seed: int) -> np.ndarray:
        avoided = set(survey.avoided.tolist())
        taken: list[int] = []
        for index in np.random.default_rng(seed).permutation(len(self.pool)).tolist():
            if index not in avoided and self._length(recipe, index) <= recipe.max_length:
                taken.append(index)
            if len(taken) == budget:
                return np.array(taken, dtype=np.int64)
        raise ConfigError(f"expected {budget} pool rows that fit, got {len(taken)}: lower the budget")

    def _length(self, recipe: TaskRecipe, index: int) -> int:
        encoded = self.lm().template.encode_example(
            self.pool[index], recipe.form, rationale=recipe.rationales
        )
        return len(encoded)

    def _survey(self, recipe: TaskRecipe, rows: TaskRows) -> PoolSurvey:
        if recipe.name not in self._surveys:
            shots = [shot for one in rows.shots.values() for shot in one]
            own = [("shot", shots), ("test row", rows.test), ("row of the same set", rows.train)]
            self._surveys[recipe.name] = survey_pool(self.pool, KeptOut(own))
        return self._surveys[recipe.name]
