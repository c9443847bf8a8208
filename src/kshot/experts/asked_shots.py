"""The shots as a model reads them: a prompt, and the targets whose likelihood is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kshot.errors import ExampleError
from kshot.evaluation.judging import MULTIPLE_CHOICE, check_golds
from kshot.examples import Example
from kshot.prompts import PromptTemplate, TokenisedExample, form_of, prompt_of


class Reader(Protocol):
    """What turns shots into tokens: a language model, or its tokenizer alone."""

    @property
    def name(self) -> str:
        """As the user calls it."""
        ...

    @property
    def template(self) -> PromptTemplate:
        """How prompts are written."""
        ...

    @property
    def max_length(self) -> int:
        """Longest row the model reads, in tokens."""
        ...


@dataclass(frozen=True, slots=True)
class AskedShot:
    """One shot; every adapter is asked the same tokens.

    Attributes:
        shot: As given.
        prompt_length: Tokens of the prompt that all targets share.
        reasoning: Rationale, then answer; the answer alone where there is no rationale.
        answer_first: The other order; the same where there is no rationale.
        answer: The answer alone; likewise.
        choices: Each choice as an answer, where choices are compared by likelihood.
    """

    shot: Example
    prompt_length: int
    reasoning: TokenisedExample
    answer_first: TokenisedExample
    answer: TokenisedExample
    choices: tuple[TokenisedExample, ...]

    @property
    def targets(self) -> tuple[TokenisedExample, ...]:
        """Distinct targets, in the order of their first mention."""
        return tuple(dict.fromkeys((self.reasoning, self.answer_first, self.answer, *self.choices)))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with a target."""
        return max(len(target) for target in self.targets)


def by_likelihood(scorer: str, *, listed: bool) -> bool:
    """Whether the task takes the likeliest choice, so that nothing is generated."""
    return scorer == MULTIPLE_CHOICE and not listed


def ask_shots(lm: Reader, shots: Sequence[Example], scorer: str, *, listed: bool) -> list[AskedShot]:
    """Tokenise the shots.

    Raises:
        ConfigError: The scorer is unknown.
        ExampleError: There are none, one lacks what the scorer needs or does not fit the model's context.
        SandboxError: The scorer runs what the model wrote, and this machine has no sandbox for it.
    """
    if not shots:
        raise ExampleError("expected at least one shot, got none: give labelled examples of the task")
    if scorer != MULTIPLE_CHOICE:  # whose rows `_ask` looks at
        check_golds(scorer, shots)
    asked = [_ask(lm, shot, scorer, listed) for shot in shots]
    for number, one in enumerate(asked, start=1):
        if one.longest > lm.max_length:
            raise ExampleError(
                f"shot {one.shot.id or number}: expected at most {lm.max_length} tokens, the context of "
                f"{lm.name or 'the model'}, got {one.longest}: shorten it or leave it out"
            )
    return asked


def _ask(lm: Reader, shot: Example, scorer: str, listed: bool) -> AskedShot:
    form = form_of(scorer, listed=listed)
    encode = lm.template.encode_example
    reasoning = encode(shot, form, rationale=True)
    choices: tuple[str, ...] = ()
    if by_likelihood(scorer, listed=listed):
        if shot.choices is None or len(shot.choices) < 2 or shot.label is None:
            raise ExampleError(
                f"{shot.id}: expected choices, two or more, and label for the scorer {MULTIPLE_CHOICE}, got "
                f"{len(shot.choices or ())} choices and label {shot.label}: add them or use another scorer"
            )
        choices = shot.choices
    return AskedShot(
        shot,
        reasoning.prompt_length,
        reasoning,
        encode(shot, form, rationale=True, order="answer_first"),
        encode(shot, form, rationale=False),
        tuple(lm.template.encode(prompt_of(shot, form), choice) for choice in choices),
    )
