"""Which choice is meant: by likelihood, by a text, by a letter."""

import numpy as np
import pytest

from kshot.errors import ExampleError
from kshot.evaluation.choices import (
    ChoicePrediction,
    choice_margin,
    labelled_answers,
    predict_choice,
    read_choice,
)


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


@pytest.mark.parametrize(
    ("output", "label", "answers"),
    [
        ("B", 1, ("A", "B", "C")),
        ("(b) wet", 1, ("(a", "(b", "(c")),
        ("the correct answer is answer3", 2, tuple(f"the correct answer is answer{i}" for i in (1, 2, 3))),
        (
            "The answer is (B) wet palms, as in (C).",
            1,
            ("The answer is (A", "The answer is (B", "The answer is (C"),
        ),
        ("Not (A). The answer is B.", 1, tuple(f"Not (A). The answer is {i}" for i in "ABC")),
        ("wet palms", 1, None),
        ("(C) wet palms", 1, None),
    ],
)
def test_labelled_answers(output: str, label: int, answers: tuple[str, ...] | None) -> None:
    assert labelled_answers(output, ("dry palms", "wet palms", "oil"), label) == answers


def test_the_margin_is_above_zero_exactly_where_the_right_choice_is_taken() -> None:
    choices, nll = ["ab", "abcd", "a"], [4.0, 5.0, 3.0]
    assert [choice_margin(nll, choices, label) for label in range(3)] == [-0.75, 0.75, -1.75]
    assert predict_choice(nll, choices, [1, 1, 1]).by_characters == 1
