"""Scorers: what counts as the same answer, the same number."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.errors import ConfigError, ExampleError, SandboxError
from kshot.evaluation import sandbox
from kshot.evaluation.scorers import (
    exact_match,
    get_scorer,
    last_number,
    normalised_match,
    number,
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


@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("The  Eiffel Tower!", "eiffel tower", True),
        ("a cat, an owl", "Cat Owl", True),
        ("Denver's", "Denvers", True),
        ("Seen from afar. The answer is: the 'Moon'.", "moon", True),
        ("another cat", "cat", False),
        ("", "cat", False),
        ("cat", "?", False),
        ("?", "?", True),
        ("an", "the", False),
        ("The.", "the", True),
    ],
)
def test_normalised_match(prediction: str, gold: str, right: bool) -> None:
    assert normalised_match(prediction, Example("ask", gold)) is right


def test_get_scorer_returns_the_registered_ones() -> None:
    names = ("exact_match", "normalised_match", "number")
    assert [get_scorer(name) for name in names] == [exact_match, normalised_match, number]


@pytest.mark.parametrize("name", ["code", "sql"])
def test_scorers_that_run_answers_need_a_sandbox(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    sandbox._open.cache_clear()
    with pytest.raises(SandboxError, match=r"apt-get install bubblewrap\); or add --allow-unsafe-code"):
        get_scorer(name)


def test_get_scorer_names_the_nearest() -> None:
    message = (
        r"one of exact_match, normalised_match, number, code, sql, got 'exact': did you mean 'exact_match'\?"
    )
    with pytest.raises(ConfigError, match=message):
        get_scorer("exact")
