"""A task of the benchmark: how it is asked, scored and split, and where its rows are."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from kshot.config import Scorer, Section, read_yaml
from kshot.prompts import Form, form_of

TASKS = Path(__file__).parents[2] / "recipes" / "tasks"


class HubSource(Section):
    """Rows on the Hub, and what an example is made of; columns of columns are named `choices.text`."""

    data: str = Field(description="hf:// data set, with configuration where it has several")
    train: str = Field(default="train", description="split that shots are drawn from")
    test: str = Field(default="test", description="split")
    instruction: str = Field(description="text with columns in braces; {options} lists the choices")
    input: str = ""
    output: str = Field(default="", description="likewise; {letter}: of the right choice")
    answer: str | None = Field(default=None, description="likewise; what scorers compare")
    question: str | None = Field(default=None, description="likewise; without options")
    choices: str | tuple[str, ...] = Field(
        default=(), description="a column that lists them, or one text or column in braces for each"
    )
    label: str | None = Field(default=None, description="column that tells the right choice")
    label_values: str | tuple[str, ...] = Field(
        default=(), description="what it says of each choice, or a column that lists that; 0, 1, ... if empty"
    )


class TaskRecipe(Section):
    """One task."""

    name: str = Field(pattern=r"^[\w-]+$", description="also of its folder under KSHOT_DATA/tasks and kshot")
    title: str
    kind: Literal["paper", "transfer"] = Field(description="evaluated in the paper, or in no bank")
    scorer: Scorer
    listed: bool = Field(default=False, description="multiple choice with its options in the prompt")
    max_new_tokens: int = Field(default=32, ge=1, description="longest generated answer")
    max_length: int = Field(
        default=512, ge=16, description="tokens of a training row; longer ones are left out"
    )
    rationales: bool = Field(
        default=False,
        description="train on rationale then answer; off, since open rows have none and teach to skip it",
    )
    num_rows: int | None = Field(
        default=None, ge=1, description="most open rows that are trained on; the benchmark's budget if absent"
    )
    num_test: int = Field(default=200, ge=1, description="test rows, drawn with seed 0; all if fewer")
    oracle_rows: int = Field(
        default=100, ge=1, description="test rows that the oracle reads with every adapter of the bank"
    )
    closed: str | None = Field(
        default=None,
        description="pattern found in the requests of rows with one right answer; others are not test rows",
    )
    fill_from_train: bool = Field(
        default=False, description="take what test rows lack from train rows that resemble no shot"
    )
    leaks: tuple[str, ...] = Field(
        default=(), description="adapters trained on rows of this task's set, left out of leak-free runs"
    )
    hub: HubSource | None = Field(default=None, description="read where KSHOT_DATA is not set")

    @property
    def form(self) -> Form:
        """How a row is asked: the bare question where choices are compared by likelihood."""
        return form_of(self.scorer, listed=self.listed)

    def is_closed(self, request: str) -> bool:
        """Whether a request has one right answer."""
        return self.closed is None or re.search(self.closed, request) is not None

    @field_validator("closed")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"expected a regular expression, {error}") from error
        return pattern


def read_recipe(path: Path) -> TaskRecipe:
    """Read a recipe.

    Raises:
        ConfigError: The file is missing or no YAML mapping, a key is unknown or missing, or a value is out of
            range.
    """
    return read_yaml(path, TaskRecipe)


def read_recipes(folder: Path = TASKS) -> dict[str, TaskRecipe]:
    """Return all recipes of a folder by name, those of the paper first."""
    found = sorted(
        (read_recipe(path) for path in folder.glob("*.yaml")), key=lambda one: (one.kind, one.name)
    )
    return {one.name: one for one in found}
