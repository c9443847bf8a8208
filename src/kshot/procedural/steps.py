"""Arithmetic in one written form, "a op b = c.", so that a skill learnt in one family serves in another."""

import ast
import operator
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial

_BINARY: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_APPLY: dict[str, Callable[[Decimal, Decimal], Decimal]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def apply(a: Decimal | int, op: str, b: Decimal | int) -> Decimal:
    """Return `a op b` exactly; both sides keep the decimal places that they are written with."""
    return _APPLY[op](Decimal(a), Decimal(b)) + 0  # 0 * -5 would be written "-0"


def state(a: Decimal | int, op: str, b: Decimal | int) -> str:
    """Write one step, such as "3 * 4 = 12."."""
    return f"{a} {op} {b} = {apply(a, op, b)}."


def sum_steps(terms: Sequence[Decimal | int]) -> list[str]:
    """Write the additions that lead from the first term to the sum; none for a single term."""
    steps: list[str] = []
    total = Decimal(terms[0])
    for term in terms[1:]:
        steps.append(state(total, "+", term))
        total += term
    return steps


def multiply_steps(a: int, b: int) -> list[str]:
    """Write a product; a factor of several digits is split as at school: 23 * 7 = 20 * 7 + 3 * 7.

    Products by one digit up to 10 are one step. Where both factors are long, the second is split.
    """
    if min(abs(a), abs(b)) == 0 or max(abs(a), abs(b)) <= 10:
        return [state(a, "*", b)]
    if abs(b) < 10:
        parts = _places(a)
        steps = [state(part, "*", b) for part in parts]
    else:
        parts = _places(b)
        steps = [state(a, "*", part) for part in parts]
    other = b if abs(b) < 10 else a
    return steps + sum_steps([part * other for part in parts])


def evaluate_steps(expression: str) -> tuple[list[str], Decimal]:
    """Write an expression of + - * / and brackets as steps, in the order in which it is worked out.

    Args:
        expression: A Python expression of numbers.

    Returns:
        The steps, and the value that the last of them reaches.
    """
    steps: list[str] = []
    value = _evaluate(ast.parse(expression.strip(), mode="eval").body, expression.strip(), steps)
    return steps, value


def _evaluate(node: ast.expr, source: str, steps: list[str]) -> Decimal:
    if isinstance(node, ast.BinOp):
        visit = partial(_evaluate, source=source, steps=steps)
        left, right = visit(node.left), visit(node.right)
        op = _BINARY[type(node.op)]
        steps.append(state(left, op, right))
        return apply(left, op, right)
    if isinstance(node, ast.UnaryOp):
        value = _evaluate(node.operand, source, steps)
        if not isinstance(node.operand, ast.Constant):
            steps.append(state(0, "-", value))
        return 0 - value
    return Decimal(ast.get_source_segment(source, node) or "")  # the text, since a float would lose "5.20"


def _places(number: int) -> list[int]:
    """Split a number by place, without its zeros: 203 -> 200, 3."""
    sign, digits = (-1 if number < 0 else 1), str(abs(number))
    places = [int(digit) * 10 ** (len(digits) - index) for index, digit in enumerate(digits, start=1)]
    return [sign * place for place in places if place]
