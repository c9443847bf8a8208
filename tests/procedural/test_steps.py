"""The one written form of arithmetic."""

from decimal import Decimal

import pytest

from kshot.procedural.steps import evaluate_steps, multiply_steps, state, sum_steps


def test_state_never_writes_a_negative_zero() -> None:
    assert state(0, "*", -5) == "0 * -5 = 0."
    assert state(Decimal("4.5"), "+", Decimal("0.5")) == "4.5 + 0.5 = 5.0."


def test_sum_of_one_term_has_no_step() -> None:
    assert sum_steps([7]) == []
    assert sum_steps([1, 2, 3]) == ["1 + 2 = 3.", "3 + 3 = 6."]


@pytest.mark.parametrize(
    ("a", "b", "steps"),
    [
        (3, 4, "3 * 4 = 12."),
        (3, 20, "3 * 20 = 60."),
        (23, 7, "20 * 7 = 140. 3 * 7 = 21. 140 + 21 = 161."),
        (7, 23, "7 * 20 = 140. 7 * 3 = 21. 140 + 21 = 161."),
        (12, 34, "12 * 30 = 360. 12 * 4 = 48. 360 + 48 = 408."),
        (-23, 7, "-20 * 7 = -140. -3 * 7 = -21. -140 + -21 = -161."),
        (0, 45, "0 * 45 = 0."),
    ],
)
def test_products_are_split_by_place(a: int, b: int, steps: str) -> None:
    assert " ".join(multiply_steps(a, b)) == steps


@pytest.mark.parametrize(
    "expression",
    ["2 + 3 * 4", "( 2 + 3 ) * 4", "-( 2 - 5 ) * 4", "8 - ( 6 / 3 ) * 2", "( ( 7 ) )", "-( -4 )"],
)
def test_against_python_eval(expression: str) -> None:
    _, value = evaluate_steps(expression)
    assert value == eval(expression)


def test_decimals_keep_their_places() -> None:
    assert evaluate_steps("5.20 + 0.05 - 1.25") == (
        ["5.20 + 0.05 = 5.25.", "5.25 - 1.25 = 4.00."],
        Decimal("4.00"),
    )


def test_steps_come_in_working_order() -> None:
    assert evaluate_steps("2 * 3 + 4 * -5")[0] == ["2 * 3 = 6.", "4 * -5 = -20.", "6 + -20 = -14."]
