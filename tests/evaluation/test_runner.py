"""The runner: against choices scored one by one, and answers generated one by one."""

import pytest

from kshot.errors import ConfigError, ExampleError
from kshot.evaluation import evaluate
from kshot.examples import Example

CHOICES = ("red", "a long blue thing", "cat")


def _example(label: int, id_: str) -> Example:
    return Example("listed options", "x", question="Which one?", choices=CHOICES, label=label, id=id_)


def test_against_choices_scored_one_by_one(tiny_lm) -> None:
    result = evaluate(tiny_lm, [_example(0, "a"), _example(2, "b")], scorer="multiple_choice")
    sums = []
    for choice in CHOICES:
        sums.append(float(tiny_lm.token_nll([tiny_lm.template.encode("Which one?", choice)])[0].sum()))
    by_characters = min(range(3), key=lambda index: sums[index] / len(CHOICES[index]))
    raw = min(range(3), key=lambda index: sums[index])
    assert [prediction.details["acc_norm"] for prediction in result.predictions] == [by_characters] * 2
    assert [prediction.details["acc"] for prediction in result.predictions] == [raw] * 2
    assert result.predictions[0].details["nll"] == pytest.approx(sums, abs=1e-3)
    assert result.accuracy == (int(by_characters == 0) + int(by_characters == 2)) / 2


def test_against_answers_generated_one_by_one(tiny_lm) -> None:
    prompts = ["say cat", "count to three please", "one"]
    golds = [tiny_lm.generate([prompt], max_new_tokens=4)[0] or "nothing" for prompt in prompts]
    examples = [Example(prompt, gold, id=prompt) for prompt, gold in zip(prompts, golds, strict=True)]
    result = evaluate(tiny_lm, examples, max_new_tokens=4)
    assert [prediction.prediction or "nothing" for prediction in result.predictions] == golds
    assert result.n == 3


def test_a_single_example_has_no_standard_error(tiny_lm) -> None:
    assert evaluate(tiny_lm, [Example("a", "b", id="1")], max_new_tokens=1).stderr is None


def test_listed_options_are_read_from_the_answer(tiny_lm) -> None:
    result = evaluate(tiny_lm, [_example(1, "a")], scorer="multiple_choice", listed=True, max_new_tokens=3)
    assert result.predictions[0].details == {}


def test_multiple_choice_without_choices_is_named(tiny_lm) -> None:
    with pytest.raises(ExampleError, match="row-7: expected choices and label"):
        evaluate(tiny_lm, [Example("a", "b", id="row-7")], scorer="multiple_choice")


def test_unknown_scorer_is_named(tiny_lm) -> None:
    with pytest.raises(ConfigError, match="exact_mach"):
        evaluate(tiny_lm, [Example("a", "b", id="1")], scorer="exact_mach")
