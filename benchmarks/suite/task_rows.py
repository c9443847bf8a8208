"""The rows of a task: shots of every seed, test rows, and the training set for the ceiling."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kshot.corpus import KeptOut
from kshot.errors import ExampleError, SourceError
from kshot.examples import Example, read_examples
from suite.budget import SEEDS
from suite.hub_rows import read_hub
from suite.recipe import TaskRecipe

NUM_SHOTS = 16  # of a task without shots on file, as in those files


@dataclass(frozen=True)
class TaskRows:
    """All rows of a task.

    Attributes:
        shots: By seed.
        test: The same for every seed.
        train: Without shots, test rows, and what resembles test rows.
    """

    shots: dict[int, list[Example]]
    test: list[Example]
    train: list[Example]


def data_folder() -> Path | None:
    """Return what KSHOT_DATA names, None where rows come from the Hub.

    Raises:
        SourceError: There is no such folder.
    """
    named = os.environ.get("KSHOT_DATA")
    if named and not Path(named).is_dir():
        raise SourceError(f"expected KSHOT_DATA to name a folder with tasks/ and kshot/, got {named!r}")
    return Path(named) if named else None


def read_task_rows(recipe: TaskRecipe) -> TaskRows:
    """Read a task from KSHOT_DATA, or from the Hub where that is not set.

    Test rows do not depend on the seed: they are drawn once, and rows that resemble a shot of any seed never
    fill them up.

    Raises:
        SourceError: Rows are in neither place.
        ExampleError: A row is no example, or lacks the choices that the scorer needs.
    """
    folder = data_folder()
    if folder is not None:
        parts = {
            part: read_examples(folder / "tasks" / recipe.name / f"{part}.parquet")
            for part in ("train", "test")
        }
        shots = {seed: _shots_on_file(folder, recipe, seed, parts["train"]) for seed in SEEDS}
    elif recipe.hub is not None:
        parts = {part: read_hub(recipe.hub, part) for part in ("train", "test")}
        shots = {seed: random.Random(seed).sample(parts["train"], NUM_SHOTS) for seed in SEEDS}
    else:
        raise SourceError(
            f"{recipe.name}: expected KSHOT_DATA to name a folder with tasks/{recipe.name}, got nothing, and "
            "the Hub has no such data set: set it, or leave the task out"
        )
    _check_choices(recipe, [*parts["test"], *(shot for one in shots.values() for shot in one)])
    test = _test_rows(recipe, parts, [shot for one in shots.values() for shot in one])
    return TaskRows(shots, test, _train_rows(parts["train"], shots, test))


def _shots_on_file(folder: Path, recipe: TaskRecipe, seed: int, train: Sequence[Example]) -> list[Example]:
    """Read shots; question, choices and label of each are its training row's."""
    rows = {row.id: row for row in train}
    return [
        replace(shot, question=row.question, choices=row.choices, label=row.label)
        for shot in read_examples(folder / "kshot" / recipe.name / f"seed{seed}.jsonl")
        for row in [rows[shot.id]]
    ]


def _test_rows(
    recipe: TaskRecipe, parts: dict[str, list[Example]], shots: Sequence[Example]
) -> list[Example]:
    test = [row for row in _shuffled(parts["test"]) if recipe.is_closed(row.request)]
    if not recipe.fill_from_train:
        return test[: recipe.num_test]
    seen = KeptOut([("shot", shots)])
    more = [row for row in _shuffled(parts["train"]) if recipe.is_closed(row.request)]
    return (_unlike(test, seen) + _unlike(more, seen))[: recipe.num_test]


def _train_rows(
    train: Sequence[Example], shots: dict[int, list[Example]], test: Sequence[Example]
) -> list[Example]:
    used = {row.id for row in test} | {shot.id for one in shots.values() for shot in one}
    return _unlike([row for row in train if row.id not in used], KeptOut([("test row", test)]))


def _unlike(rows: list[Example], others: KeptOut) -> list[Example]:
    matched = others.matches(rows)
    return [row for place, row in enumerate(rows) if place not in matched]


def _shuffled(rows: Sequence[Example]) -> list[Example]:
    return [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]


def _check_choices(recipe: TaskRecipe, rows: Sequence[Example]) -> None:
    lost = [row.id for row in rows if recipe.scorer == "multiple_choice" and row.label is None]
    if lost:
        raise ExampleError(
            f"{recipe.name}: expected choices and label in every row for scorer multiple_choice, got none "
            f"in {lost[0]} ({len(lost)} in all): use another scorer"
        )
