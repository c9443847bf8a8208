"""Is an answer good enough to keep its rationale? It must state what the row says is right."""

from collections.abc import Callable
from dataclasses import dataclass

from kshot.errors import ExampleError
from kshot.evaluation.choices import read_choice
from kshot.evaluation.scorers import get_scorer
from kshot.examples import Example
from kshot.rationales.prompt import Style, gold_answer
from kshot.rationales.reading import read_answer
from kshot.rationales.writer import Answer

Judge = Callable[[str, Example], bool]

_NOT_USABLE = {
    "length": "cut off at the token limit",
    "filter": "turned down by the endpoint's content filter",
    "prompt_too_long": "the prompt is too long for the model",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a rationale is kept.

    Attributes:
        rationale: What is kept; None where the answer is turned down.
        reason: Why it is turned down; empty where it is kept.
        stated: The answer that the model gave.
    """

    rationale: str | None
    reason: str = ""
    stated: str = ""


def judge_of(scorer: str) -> Judge:
    """Return what compares a stated answer with the right one.

    Raises:
        ConfigError: The scorer is unknown.
    """
    return _names_right_choice if scorer == "multiple_choice" else get_scorer(scorer)


def check(answer: Answer, example: Example, *, scorer: str, style: Style) -> Verdict:
    """Decide on an answer.

    Args:
        answer: What the model said.
        example: With the right answer.
        scorer: `exact_match`, `number` or `multiple_choice`.
        style: Where the line `Answer: ...` belongs.

    Raises:
        ConfigError: The scorer is unknown.
        ExampleError: The example lacks what the scorer needs.
    """
    judge = judge_of(scorer)
    if answer.stop != "end":
        return Verdict(None, _NOT_USABLE[answer.stop])
    if not answer.text.strip():
        return Verdict(None, "an empty answer")
    gold_lines = len(gold_answer(example, scorer).strip().splitlines())
    reading = read_answer(answer.text, style, answer_lines=max(1, gold_lines))
    if reading.problem:
        return Verdict(None, reading.problem, reading.stated)
    if not judge(reading.stated, example):
        return Verdict(None, "another answer than the right one", reading.stated)
    return Verdict(reading.rationale, stated=reading.stated)


def _names_right_choice(stated: str, example: Example) -> bool:
    if not example.choices or example.label is None:
        raise ExampleError(
            f"{example.id}: expected choices and label for the scorer multiple_choice, got none; "
            "add them or use another scorer"
        )
    return read_choice(stated, example.choices) == example.label
