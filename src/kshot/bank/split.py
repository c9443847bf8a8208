"""The rows of one set, tokenised and parted: those that an adapter learns from, and those that show it."""

import random
from dataclasses import dataclass
from pathlib import Path

from kshot.bank.recipe import AdapterRecipe, BankRecipe, read_rows
from kshot.errors import ExampleError
from kshot.examples import Example
from kshot.language_model import LanguageModel
from kshot.prompts import TokenisedExample, target_of


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of one set, each distinct row in one part only.

    Attributes:
        train: Tokenised.
        held_out: Tokenised.
        train_rows: What was tokenised into `train`.
    """

    train: list[TokenisedExample]
    held_out: list[TokenisedExample]
    train_rows: list[Example]


def split_rows(lm: LanguageModel, recipe: BankRecipe, adapter: AdapterRecipe, folder: Path) -> Split:
    """Draw the training and the held-out rows of an adapter; the same ones each time.

    Args:
        lm: Its tokenizer and template.
        recipe: How many rows, how long, and the seed.
        adapter: Where they come from.
        folder: That relative paths start from.

    Raises:
        ExampleError: There are not enough rows of that length.
        ConfigError, SourceError: As `read_rows`.
    """
    rows, max_tokens = adapter.rows or recipe.rows, adapter.max_tokens or recipe.max_tokens
    examples = read_rows(adapter, size=rows + recipe.held_out, seed=recipe.seed, folder=folder)
    random.Random(recipe.seed).shuffle(examples)
    seen: set[tuple[str, str]] = set()
    kept: list[tuple[Example, TokenisedExample]] = []
    for example in examples:
        key = (example.request, target_of(example, adapter.form))
        tokenised = lm.template.encode_example(example, adapter.form, rationale=True)
        if key not in seen and len(tokenised) <= max_tokens:
            kept.append((example, tokenised))
        seen.add(key)
        if len(kept) == rows + recipe.held_out:
            break
    if len(kept) <= recipe.held_out:
        raise ExampleError(
            f"{adapter.name}: expected more than {recipe.held_out} rows of at most {max_tokens} "
            f"tokens, got {len(kept)}: lower held_out or raise max_tokens"
        )
    held_out, train = kept[: recipe.held_out], kept[recipe.held_out :]
    return Split(
        train=[tokenised for _, tokenised in train],
        held_out=[tokenised for _, tokenised in held_out],
        train_rows=[example for example, _ in train],
    )
