"""The runner: against choices scored one by one, and answers generated one by one."""

import pytest

from kshot.errors import ConfigError, ExampleError
from kshot.evaluation import evaluate, num_units
from kshot.evaluation.sandbox import Sandbox
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


def _lettered(label: int, id_: str) -> Example:
    answer = f"The answer is ({'ABC'[label]})"
    return Example(
        "(A) red (B) a long blue thing (C) cat",
        answer,
        question="Which?",
        choices=CHOICES,
        label=label,
        id=id_,
    )


def test_letters_against_answers_scored_one_by_one(tiny_lm) -> None:
    examples = [_lettered(0, "a"), _lettered(2, "b")]
    result = evaluate(tiny_lm, examples, scorer="multiple_choice", beside=["letter"])
    sums = [
        float(
            tiny_lm.token_nll([tiny_lm.template.encode(examples[0].request, f"The answer is ({letter}")])[
                0
            ].sum()
        )
        for letter in "ABC"
    ]
    taken = sums.index(min(sums))
    assert [prediction.details["letter"] for prediction in result.predictions] == [taken] * 2
    assert result.other["letter"] == ((taken == 0) + (taken == 2)) / 2


def test_generated_beside_likelihood_is_what_listed_gives(tiny_lm) -> None:
    examples = [_lettered(0, "a"), _lettered(2, "b")]
    settings = {"scorer": "multiple_choice", "max_new_tokens": 3}
    counted: list[int] = []
    both = evaluate(tiny_lm, examples, beside=["letter", "generated"], progress=counted.append, **settings)
    listed = evaluate(tiny_lm, examples, listed=True, **settings)
    alone = evaluate(tiny_lm, examples, **settings)
    assert both.other == alone.other | {"letter": both.other["letter"], "generated": listed.accuracy}
    assert both.accuracy == alone.accuracy
    assert [one.details["generated"] for one in both.predictions] == [
        one.prediction for one in listed.predictions
    ]
    assert sum(counted) == num_units(examples, "multiple_choice", beside=["letter", "generated"]) == 14


def test_beside_belongs_to_likelihood(tiny_lm) -> None:
    with pytest.raises(
        ConfigError, match=r"beside belongs to .* got letter with scorer exact_match: leave it out"
    ):
        evaluate(tiny_lm, [Example("a", "b", id="1")], beside=["letter"])
    with pytest.raises(ConfigError, match="got letter with scorer multiple_choice, options listed"):
        evaluate(tiny_lm, [_lettered(0, "a")], scorer="multiple_choice", listed=True, beside=["letter"])


def test_an_output_without_a_letter_is_named(tiny_lm) -> None:
    with pytest.raises(
        ExampleError, match=r"a: expected an output that names the right option by letter .* got 'x'"
    ):
        evaluate(tiny_lm, [_example(0, "a")], scorer="multiple_choice", beside=["letter"])


def test_what_the_scorer_cannot_read_is_found_before_anything_is_asked(
    tiny_lm, real_sandbox: Sandbox
) -> None:
    for scorer, message in {"number": "a number", "code": "Python tests", "sql": "a query"}.items():
        counted: list[int] = []
        with pytest.raises(ExampleError, match=f"scorer {scorer} expects {message} in the answer of row"):
            evaluate(tiny_lm, [Example("a", "b", id="row")], scorer=scorer, progress=counted.append)
        assert counted == []


def test_programs_are_run_and_counted(tiny_lm, real_sandbox: Sandbox) -> None:
    prompt = "say something"
    said = tiny_lm.generate([prompt], max_new_tokens=2)[0]
    examples = [Example(prompt, "x", answer=tests, id=tests) for tests in ("print()", "assert False")]
    counted: list[int] = []
    result = evaluate(tiny_lm, examples, scorer="code", max_new_tokens=2, progress=counted.append)
    assert [prediction.prediction for prediction in result.predictions] == [said, said]
    assert "outcome" in result.predictions[0].details
    assert not result.predictions[1].correct
    assert sum(counted) == num_units(examples, "code") == 4
