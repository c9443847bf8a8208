"""Scorers: what counts as the same answer, the same number, the same choice."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.errors import ConfigError, ExampleError
from kshot.evaluation.scorers import (
    SCORERS,
    ChoicePrediction,
    exact_match,
    get_scorer,
    last_number,
    number,
    predict_choice,
    read_choice,
)
from kshot.examples import Example


@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("Paris", "paris", True),
        ("  the  answer is\nParis. ", "Paris", True),
        ("The correct answer is: answer2.", "answer2", True),
        ("the correct answer is answer2", "the correct answer is answer2", True),
        ("Seven times five is 35. The answer is 35.", "35", True),
        ("The answer is 3. No, the answer is 5.", "5", True),
        ("X = 7 * 5\nThe answer is 35", "The answer is 35.", True),
        ("New  York", "new york", True),
        ("Paris, France", "Paris", False),
        ("the answer is", "Paris", False),
        ("", "Paris", False),
        ("a.b", "ab", False),
    ],
)
def test_exact_match(prediction: str, gold: str, right: bool) -> None:
    assert exact_match(prediction, Example("ask", gold)) is right


def test_exact_match_compares_with_answer_before_output() -> None:
    example = Example("ask", "It is hot there. The answer is (B) fire.", answer="B")
    assert exact_match("b", example)
    assert not exact_match("(B) fire", example)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("48/2 = <<48/2=24>>24 clips\n#### 72", 72),
        ("it costs $1,234.50.", Fraction("1234.5")),
        ("-$5", -5),
        ("$-5", -5),
        ("x = −3", -3),
        ("7-3", 3),
        ("GPT-4", 4),
        ("(2)-1", 1),
        ("50%", 50),
        ("1/2", Fraction(1, 2)),
        ("-1/4", Fraction(-1, 4)),
        ("2 1/2 cups", Fraction(5, 2)),
        ("5/0", 0),
        ("on 3/4/2020", 2020),
        ("1/2.5", Fraction("2.5")),
        ("in all .5", Fraction(1, 2)),
        ("version 1.2.3", 3),
        ("1,2345", 2345),
        ("1,234,567", 1234567),
        ("3, 4,", 4),
        ("2e3", 2000),
        ("5.0e-1 m", Fraction(1, 2)),
        ("5 eggs", 5),
        ("10km", 10),
        ("answer2", 2),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text: str, value: Fraction | int | None) -> None:
    assert last_number(text) == value


@given(st.integers())
def test_roundtrip_of_whole_numbers(value: int) -> None:
    assert last_number(f"so 1 and 2 give {value}.") == value
    assert last_number(f"so {value:,}") == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_roundtrip_of_decimals(value: object) -> None:
    assert last_number(f"about {value:f} m") == Fraction(f"{value:f}")


@given(st.text(alphabet="0123456789,./-$%e ", max_size=60))
def test_invariant_any_text_is_read(text: str) -> None:
    assert (last_number(text) is None) == (not any(letter.isdigit() for letter in text))


def test_a_repeated_digit_is_read_too() -> None:
    assert last_number("9" * 100_000) is not None
    assert last_number("1e999999999") == 999999999


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("That makes 0.50.", True),
        ("1/2", True),
        ("It is 0.5 of 3", False),
        ("I do not know", False),
        ("0.4999", False),
    ],
)
def test_number(prediction: str, right: bool) -> None:
    assert number(prediction, Example("ask", "half", answer="1/2")) is right


def test_number_tells_large_numbers_apart() -> None:
    assert not number("12345678901234567", Example("ask", "12345678901234568"))


def test_number_refuses_a_gold_answer_without_number() -> None:
    with pytest.raises(
        ExampleError, match="expects a number in the answer of arc-1, got 'fire': use scorer exact_match"
    ):
        number("3", Example("ask", "fire", id="arc-1"))


def test_get_scorer_returns_the_registered_ones() -> None:
    assert {name: get_scorer(name) for name in SCORERS} == {"exact_match": exact_match, "number": number}


def test_get_scorer_names_the_nearest() -> None:
    message = r"must be one of exact_match, number, got 'exact': did you mean 'exact_match'\?"
    with pytest.raises(ConfigError, match=message):
        get_scorer("exact")


def test_predict_choice_by_each_measure() -> None:
    predicted = predict_choice([4.0, 5.0, 6.0], ["ab", "abcd", "abcde"], [1, 2, 6])
    assert predicted == ChoicePrediction(raw=0, by_characters=2, by_tokens=2)
    predicted = predict_choice([4.0, 5.0, 6.0], ["ab", "abcdefgh", "abcde"], [1, 2, 6])
    assert predicted == ChoicePrediction(raw=0, by_characters=1, by_tokens=2)


def test_predict_choice_gives_ties_to_the_lower_index() -> None:
    assert predict_choice([2.0, 2.0], ["a", "b"], [1, 1]) == ChoicePrediction(0, 0, 0)


def test_predict_choice_never_takes_an_impossible_choice() -> None:
    assert predict_choice([np.inf, 900.0], ["a", "b"], [1, 1]) == ChoicePrediction(1, 1, 1)


@pytest.mark.parametrize(
    ("nll", "choices", "num_tokens", "message"),
    [
        ([1.0], ["a", "b"], [1, 1], "for each choice, got 1, 2 and 2"),
        ([], [], [], "for each choice, got 0, 0 and 0"),
        ([1.0, 1.0], ["a", ""], [1, 1], "expected text in every choice, got '' of 1 tokens as choice 1"),
        ([1.0, 1.0], ["a", "b"], [0, 1], "expected text in every choice, got 'a' of 0 tokens as choice 0"),
        ([1.0, float("nan")], ["a", "b"], [1, 1], "got NaN for choice 1: the model overflows"),
    ],
)
def test_predict_choice_refuses(
    nll: list[float], choices: list[str], num_tokens: list[int], message: str
) -> None:
    with pytest.raises(ExampleError, match=message):
        predict_choice(nll, choices, num_tokens)


@pytest.mark.parametrize(
    ("prediction", "index"),
    [
        ("(B)", 1),
        ("B", 1),
        ("b.", 1),
        ("B) wet palms", 1),
        ("A. dry palms\n\nRubbing two surfaces, as in (C), makes heat.", 0),
        ("answer2", 1),
        ("the correct answer is answer3", 2),
        ("Solution 1", 0),
        ("The answer is (D) palms covered with lotion.", 3),
        ("Friction is least in (A). The answer is (C).", 2),
        ("Not (A), so it must be (D)", 3),
        ("wet palms", 1),
        ("The answer is Dry Palms.", 0),
        ("answer9 or (C)", 2),
        ("(Z)", None),
        ("A dog", None),
        ("I would say wet", None),
        ("", None),
    ],
)
def test_read_choice(prediction: str, index: int | None) -> None:
    choices = ("dry palms", "wet palms", "palms covered with oil", "palms covered with lotion")
    assert read_choice(prediction, choices) == index


def test_read_choice_takes_the_text_of_a_choice_before_its_letter() -> None:
    assert read_choice("B", ["B", "A"]) == 0
    assert read_choice("the correct answer is false", ["true", "false"]) == 1
