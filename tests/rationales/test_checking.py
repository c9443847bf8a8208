"""Only a rationale whose stated answer is the right one is kept."""

import pytest

from kshot.errors import ConfigError, ExampleError
from kshot.examples import Example
from kshot.prompts import target_of
from kshot.rationales import Answer
from kshot.rationales.checking import Verdict, check
from kshot.rationales.writer import Stop

SUM = Example("2 + 2?", "The answer is 4.", answer="4", id="sum")
SKY = Example("Which? A) red B) blue", "B", choices=("red", "blue"), label=1, id="sky")


def _check(text: str, example: Example = SUM, scorer: str = "number", stop: Stop = "end") -> Verdict:
    return check(Answer(text, 1, 1, stop), example, scorer=scorer, style="answer-first")


@pytest.mark.parametrize(
    ("example", "scorer", "stated", "right"),
    [
        (SUM, "number", "4.0 apples", True),
        (SUM, "number", "5", False),
        (SUM, "exact_match", "4", True),
        (SUM, "exact_match", "four", False),
        (SKY, "multiple_choice", "Blue", True),
        (SKY, "multiple_choice", "(B) blue", True),
        (SKY, "multiple_choice", "red", False),
        (SKY, "multiple_choice", "green", False),
    ],
)
def test_the_stated_answer_counts(example: Example, scorer: str, stated: str, right: bool) -> None:
    verdict = _check(f"Answer: {stated}\nOne sees it.", example, scorer)
    assert verdict.rationale == ("One sees it." if right else None)
    assert verdict.stated == stated
    assert verdict.reason == ("" if right else "another answer than the right one")


@pytest.mark.parametrize(
    ("text", "stop", "reason"),
    [
        ("", "end", "an empty answer"),
        (" \n", "end", "an empty answer"),
        ("Answer: 4\nTwo and two", "length", "cut off at the token limit"),
        ("", "filter", "turned down by the endpoint's content filter"),
        ("", "prompt_too_long", "the prompt is too long for the model"),
        ("It is 4.", "end", "no answer line"),
    ],
)
def test_what_is_no_answer(text: str, stop: Stop, reason: str) -> None:
    assert _check(text, stop=stop) == Verdict(None, reason)


def test_invariant_the_target_states_the_answer_once() -> None:
    rationale = _check("Answer: 4\nTwo and two make four. The answer is 4.").rationale
    example = Example(SUM.instruction, SUM.output, answer="4", rationale=rationale)
    assert target_of(example, "instruction", rationale=True) == "Two and two make four.\nThe answer is 4."


def test_an_answer_of_several_lines() -> None:
    example = Example("Write f.", "def f():\n    return 4", id="f")
    verdict = _check("Answer: def f():\n    return 4\nIt gives four.", example, "exact_match")
    assert verdict.rationale == "It gives four."


def test_an_unknown_scorer_or_a_row_without_choices() -> None:
    with pytest.raises(ConfigError, match="scorer of generated text must be one of"):
        _check("Answer: 4\nSo.", scorer="bleu")
    with pytest.raises(ExampleError, match="sum: expected choices and label for the scorer multiple_choice"):
        _check("Answer: 4\nSo it is.", scorer="multiple_choice")
