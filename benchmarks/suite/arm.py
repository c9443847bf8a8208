"""What every arm of the benchmark may use, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from kshot.bank import Bank
from kshot.config import TrainingConfig
from kshot.examples import Example
from kshot.experts import Scores
from kshot.language_model import LanguageModel
from kshot.prompts import TokenisedExample
from suite.recipe import TaskRecipe


@dataclass(frozen=True)
class Setting:
    """All an arm may use; the same for every arm.

    Attributes:
        lm: The base model, freshly loaded, no adapters; an arm may change it.
        bank: Without the adapters that are left out.
        scores: Of the bank on the shots.
        shots: The K examples.
        rows: Selected open rows.
        recipe: Of the task.
        training: Rates, epochs, batch; of a tuned arm with the learning rate to use.
        seed: Of the shots, of fresh weights and of the order of rows.
        work: The arm's own folder for what it keeps.
    """

    lm: LanguageModel
    bank: Bank
    scores: Scores
    shots: list[Example]
    rows: list[Example]
    recipe: TaskRecipe
    training: TrainingConfig
    seed: int
    work: Path


@dataclass(frozen=True)
class Built:
    """What an arm made.

    Attributes:
        model: What is evaluated: same forward signature as `Setting.lm.model`.
        trained_parameters: Number of weights that were tuned.
        notes: Experts chosen, weights found, learning rate; JSON alone.
    """

    model: nn.Module
    trained_parameters: int
    notes: Mapping[str, Any] = field(default_factory=dict)


Arm = Callable[[Setting], Built]


def training_rows(setting: Setting) -> list[TokenisedExample]:
    """Return shots and selected rows as every tuned arm is trained on them."""
    return encode(setting, [*setting.shots * setting.training.shot_repeats, *setting.rows])


def encode(setting: Setting, examples: list[Example]) -> list[TokenisedExample]:
    """Tokenise examples in the form of the task, rationales first where the task trains on them."""
    recipe = setting.recipe
    return [
        setting.lm.template.encode_example(
            example, recipe.form, rationale=recipe.rationales, max_length=recipe.max_length
        )
        for example in examples
    ]
