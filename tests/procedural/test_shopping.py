"""The demo's target: shopping problems whose steps hold and lead from the question to the answer."""

import re
from fractions import Fraction

import pytest

from kshot.errors import ConfigError
from kshot.examples import Example
from kshot.procedural import draw_shopping
from kshot.procedural.shopping import ITEMS, TEMPLATES

STATEMENT = re.compile(r"(\d+) ([+*]) (\d+) = (\d+)\.")


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    return draw_shopping(size=5000, seed=4)


def test_invariant_rows_are_distinct(rows: list[Example]) -> None:
    assert len({row.instruction for row in rows}) == len({row.id for row in rows}) == 5000


def test_every_statement_holds_and_the_last_gives_the_answer(rows: list[Example]) -> None:
    for row in rows:
        statements = STATEMENT.findall(row.rationale or "")
        assert " ".join(f"{a} {op} {b} = {c}." for a, op, b, c in statements) == row.rationale
        assert all(Fraction(eval(f"{a} {op} {b}")) == int(c) for a, op, b, c in statements)
        assert statements[-1][-1] == row.answer
        assert row.output == f"The answer is {row.answer}."


def test_against_the_question_read_anew(rows: list[Example]) -> None:
    """Find each item's price and count in the text, by its name, and work the answer out."""
    names = {plural: singular for singular, plural in ITEMS.items()}
    for row in rows:
        text = row.instruction[0].lower() + row.instruction[1:]
        counts = {name: int(n) for n, name in re.findall(r"(\d+) (\w+)", text) if name in names}
        prices = {
            name: int(price)
            for name in counts
            for pattern in (rf"\b{names[name]} costs (\d+)", rf"\b{name} (?:at|for) (\d+) dollars each")
            for price in re.findall(pattern, text, flags=re.IGNORECASE)
        }
        total = sum(count * prices[name] for name, count in counts.items())
        assert int(row.gold) == total, text
        assert len(counts) == 2


def test_wording_varies(rows: list[Example]) -> None:
    openings = {template.split("{")[0] for template in TEMPLATES}
    assert len(TEMPLATES) >= 8
    assert all(any(row.instruction.startswith(opening) for row in rows) for opening in openings)


@pytest.mark.parametrize(("size", "seed"), [(0, 1), (1, -1)])
def test_out_of_range(size: int, seed: int) -> None:
    with pytest.raises(
        ConfigError, match=f"expected size >= 1 and seed >= 0, got size {size} and seed {seed}"
    ):
        draw_shopping(size=size, seed=seed)
