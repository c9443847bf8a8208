"""What the cells of a run share: base models, task rows, scores of the bank, picked open rows.

WORK/
    scores/<task>.jsonl     what adapters did on shots and test rows
    rows/<task>-seed<n>-<key>.jsonl     open rows
    trials/<task>.jsonl     held-out NLL by arm, rate and fold
    arms/<task>/<arm>/seed<n>/      an arm's own folder
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from kshot.bank import Bank
from kshot.config import TrainingConfig
from kshot.examples import Example
from kshot.experts import Scores, ScoreStore
from kshot.language_model import LanguageModel
from suite.arm import Setting
from suite.bank_scores import score_bank, without_leaks
from suite.budget import FULL_ROWS, TRAINING
from suite.cell import Cell
from suite.open_rows import OpenRows
from suite.recipe import TaskRecipe
from suite.task_rows import TaskRows, read_task_rows


@dataclass
class SharedWork:
    """Work that is done once.

    Attributes:
        base: Model reference.
        dtype: Of the base model.
        bank_source: Bank folder or reference.
        pool_sources: Files, patterns or `hf://` data sets of open rows.
        work: Folder; see the module.
        training: Rates aside the same for every tuned arm.
        limit: Most test rows that are measured; all of the recipe's where absent.
    """

    base: str
    dtype: str
    bank_source: str
    pool_sources: Sequence[str]
    work: Path
    training: TrainingConfig = TRAINING
    limit: int | None = None
    _rows: dict[str, TaskRows] = field(default_factory=dict)

    def fresh_model(self) -> LanguageModel:
        """Load the base model: an arm may change what it is given."""
        return LanguageModel.load(self.base, dtype=self.dtype)

    @cached_property
    def model(self) -> LanguageModel:
        """The base model that scores and counts tokens; no arm is given it."""
        return self.fresh_model()

    @cached_property
    def bank(self) -> Bank:
        """All adapters."""
        return Bank.open(self.bank_source)

    @cached_property
    def open_rows(self) -> OpenRows:
        """The pool."""
        return OpenRows(self.pool_sources, self.work / "rows", lambda: self.model)

    def rows_of(self, recipe: TaskRecipe) -> TaskRows:
        """Return the rows of a task, read once."""
        if recipe.name not in self._rows:
            self._rows[recipe.name] = read_task_rows(recipe)
        return self._rows[recipe.name]

    def test_of(self, cell: Cell) -> list[Example]:
        """Return the test rows that a cell is measured on."""
        return self.rows_of(cell.recipe).test[: self.limit]

    def shots_of(self, cell: Cell) -> list[Example]:
        """Return the shots of a cell."""
        return self.rows_of(cell.recipe).shots[cell.seed][: cell.start.num_shots]

    def bank_of(self, cell: Cell) -> Bank:
        """Return the adapters that a cell may use."""
        return without_leaks(self.bank, cell.recipe) if cell.start.leak_free else self.bank

    def store(self, kind: str, cell: Cell) -> ScoreStore:
        """Return what `scores` or `trials` found out so far for the task of a cell."""
        return ScoreStore(self.work / kind / f"{cell.recipe.name}.jsonl")

    def setting(self, cell: Cell) -> Setting:
        """Return all that an arm may use, with a base model of its own.

        Raises:
            KshotError: Something cannot be read, or fits nothing else.
        """
        shots, bank = self.shots_of(cell), self.bank_of(cell)
        folder = self.work / "arms" / cell.recipe.name / cell.arm / f"seed{cell.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        return Setting(
            lm=self.fresh_model(),
            bank=bank,
            scores=self._scores(cell, bank, shots),
            shots=shots,
            rows=self._open_rows(cell, shots),
            recipe=cell.recipe,
            training=self.training.model_copy(update={"max_length": cell.recipe.max_length}),
            seed=cell.seed,
            work=folder,
        )

    def _scores(self, cell: Cell, bank: Bank, shots: Sequence[Example]) -> Scores:
        examples = shots
        if cell.info.sees == "test":
            examples = self.test_of(cell)[: cell.recipe.oracle_rows]
        return score_bank(self.model, bank, examples, cell.recipe, self.store("scores", cell))

    def _open_rows(self, cell: Cell, shots: Sequence[Example]) -> list[Example]:
        rows = self.rows_of(cell.recipe)
        if cell.info.sees != "train":
            picked = self.open_rows.pick(cell.recipe, rows, shots, cell.start, cell.seed)
            return picked[: cell.recipe.num_rows]
        order = np.random.default_rng(cell.seed).permutation(len(rows.train))
        drawn = (rows.train[place] for place in order)
        return [row for row in drawn if self._fits(cell.recipe, row)][:FULL_ROWS]

    def _fits(self, recipe: TaskRecipe, row: Example) -> bool:
        encoded = self.model.template.encode_example(row, recipe.form, rationale=recipe.rationales)
        return len(encoded) <= recipe.max_length
