"""A bank recipe: which adapters to train, on what, and how."""

import json
import os
import re
from dataclasses import replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from kshot.bank.adapter import NAME_PATTERN
from kshot.config import Section, TrainingConfig
from kshot.errors import ConfigError, ExampleError, SourceError
from kshot.examples import HUB_SCHEME, Example, expand, read_examples
from kshot.procedural import draw_family
from kshot.prompts import Form


class AdapterRecipe(Section):
    """One adapter: rows from a file or from a procedural family."""

    name: str = Field(pattern=NAME_PATTERN)
    data: str | None = Field(
        default=None, description="file or hf:// data set; environment variables are expanded"
    )
    family: str | None = Field(default=None, description="reasoning-gym family to draw rows from")
    form: Form = "instruction"
    rationale_pattern: str | None = Field(
        default=None, description="its first group is the rationale inside an output"
    )
    rows: int | None = Field(default=None, ge=1, description="training rows; the recipe's where absent")
    max_tokens: int | None = Field(
        default=None, ge=16, description="longer rows are left out; the recipe's where absent"
    )
    r: int | None = Field(default=None, ge=1, description="the recipe's where absent")
    origin: str = ""
    licence: str = "unknown"

    @model_validator(mode="after")
    def _one_source(self) -> "AdapterRecipe":
        if (self.data is None) == (self.family is None):
            raise ValueError(f"adapter {self.name} needs either data or family")
        return self

    @field_validator("rationale_pattern")
    @classmethod
    def _has_group(cls, pattern: str | None) -> str | None:
        try:
            groups = re.compile(pattern).groups if pattern is not None else 1
        except re.error as error:
            raise ValueError(f"expected a regular expression, {error}") from error
        if groups < 1:
            raise ValueError("expected a regular expression with a group around the rationale")
        return pattern


class BankRecipe(Section):
    """The whole bank."""

    name: str
    base_model: str
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="of the frozen base; bfloat16 halves the time where the processor has it",
    )
    seed: int = 0
    rows: int = Field(default=1000, ge=1, description="training rows of each adapter")
    held_out: int = Field(
        default=100, ge=1, description="rows of each set kept out of training, to show that it learned"
    )
    max_tokens: int = Field(default=1024, ge=16, description="longer rows are left out")
    r: int = Field(default=16, ge=1)
    lora_alpha_over_r: float = Field(
        default=2.0, gt=0, description="lora_alpha = this x r, the usual choice of PEFT recipes"
    )
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="epochs in a row without a lower held-out NLL, after which training stops; the best "
        "epoch is kept; where absent all epochs are trained and the last is kept",
    )
    tokens: int | None = Field(
        default=None,
        ge=1,
        description="an adapter is trained on: whole epochs that fit, one at least; num_train_epochs where "
        "absent, and at most",
    )
    training: TrainingConfig = TrainingConfig()
    adapters: tuple[AdapterRecipe, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> "BankRecipe":
        names = [adapter.name for adapter in self.adapters]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"adapter names must be distinct, got {', '.join(twice)} more than once")
        return self

    @model_validator(mode="after")
    def _whole_alpha(self) -> "BankRecipe":
        for r in {self.r, *(adapter.r for adapter in self.adapters if adapter.r)}:
            if not (r * self.lora_alpha_over_r).is_integer():
                raise ValueError(
                    f"lora_alpha_over_r must make lora_alpha whole, got {self.lora_alpha_over_r} x {r}"
                )
        return self


def read_rows(adapter: AdapterRecipe, *, size: int, seed: int, folder: Path) -> list[Example]:
    """Return the rows that an adapter may learn from, rationales filled in.

    Args:
        adapter: Where the rows come from.
        size: Rows to draw from a procedural family; files are read whole.
        seed: Of the family.
        folder: That relative paths start from.

    Raises:
        ConfigError: A path names an environment variable that is not set.
        SourceError: The file is not there.
        ExampleError: The rationale pattern fits no row.
    """
    if adapter.family is not None:
        return draw_family(adapter.family, size=size, seed=seed)
    examples = read_examples(_located(adapter, folder))
    if adapter.rationale_pattern is None:
        return examples
    pattern = re.compile(adapter.rationale_pattern, re.DOTALL)
    found = [_with_rationale(example, pattern) for example in examples]
    kept = [example for example in found if example.rationale]
    if not kept:
        raise ExampleError(
            f"{adapter.name}: expected rationale_pattern to fit some output, it fits none of {len(found)}"
        )
    return kept


def data_digest(adapter: AdapterRecipe, folder: Path) -> str | None:
    """Return a hash of the bytes that an adapter's rows are read from: a file's sha256, or one of all files.

    None for a procedural family and for a data set on the Hub, which the recipe names in full.

    Args:
        adapter: Where the rows come from.
        folder: That relative paths start from.

    Raises:
        ConfigError, SourceError: As `read_rows`.
    """
    if adapter.family is not None or (source := _located(adapter, folder)).startswith(HUB_SCHEME):
        return None
    files = [(path.name, _sha256(path)) for path in expand(source)]
    return files[0][1] if len(files) == 1 else sha256(json.dumps(files).encode()).hexdigest()


def _located(adapter: AdapterRecipe, folder: Path) -> str:
    source = os.path.expandvars(adapter.data or "")
    if "$" in source:
        raise ConfigError(
            f"{adapter.name}: expected the variable in {adapter.data} to be set; set it to a folder"
        )
    return source if source.startswith(HUB_SCHEME) else str(folder / source)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror}; check the file and its permissions"
        ) from error


def _with_rationale(example: Example, pattern: re.Pattern[str]) -> Example:
    match = pattern.match(example.output)
    rationale = match.group(1).strip() if match else ""
    return replace(example, rationale=rationale or None)
