"""Rationales lead to the gold answer, checked from the question and the answer alone."""

import ast
import math
import re
from fractions import Fraction

import pytest
from reasoning_gym.arithmetic.leg_counting import ANIMALS

from kshot.examples import Example
from kshot.procedural import FAMILIES, draw_family
from kshot.procedural.rationales import LEGS, write_rationale

ROWS = 200
NUMBER = r"-?\d+(?:\.\d+)?"
STATEMENT = re.compile(rf"({NUMBER}) ([-+*/]) ({NUMBER}) = ({NUMBER})")
ENDS_AT_ANSWER = (
    "basic_arithmetic", "chain_sum", "count_bits", "count_primes", "decimal_chain_sum", "gcd", "gsm_symbolic",
    "lcm", "leg_counting", "letter_counting", "products", "simple_equations", "simple_geometry",
)  # fmt: skip
PURE_ARITHMETIC = (
    "basic_arithmetic", "chain_sum", "complex_arithmetic", "decimal_chain_sum", "fraction_simplification",
    "lcm", "products", "simple_equations", "simple_geometry",
)  # fmt: skip


def holds(left: str, op: str, right: str, result: str) -> bool:
    a, b = Fraction(left), Fraction(right)
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[op]
    return value == Fraction(result)


def numbers(text: str) -> list[str]:
    return re.findall(NUMBER, text)


def draw(family: str, size: int = ROWS) -> list[tuple[Example, str]]:
    return [(example, example.rationale or "") for example in draw_family(family, size=size, seed=11)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_has_a_short_rationale_of_one_line(family: str) -> None:
    rows = draw(family)
    assert all(rationale.endswith(".") and "\n" not in rationale for _, rationale in rows)
    assert max(len(rationale) for _, rationale in rows) <= 200


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gsm_symbolic"])
def test_every_statement_holds(family: str) -> None:
    for _, rationale in draw(family):
        assert all(holds(*statement) for statement in STATEMENT.findall(rationale)), rationale


@pytest.mark.parametrize("family", PURE_ARITHMETIC)
def test_arithmetic_families_consist_of_statements(family: str) -> None:
    for _, rationale in draw(family):
        assert re.fullmatch(rf"(?:{STATEMENT.pattern}\. )*{STATEMENT.pattern}\.", rationale), rationale


@pytest.mark.parametrize("family", ENDS_AT_ANSWER)
def test_last_number_is_the_answer(family: str) -> None:
    for example, rationale in draw(family):
        assert numbers(rationale.replace(",", ""))[-1] == example.answer


@pytest.mark.parametrize("family", ["basic_arithmetic", "chain_sum", "products"])
def test_operands_come_from_the_question(family: str) -> None:
    for example, rationale in draw(family):
        expression = re.search(r"[-(\d][-+*/() \d]*[)\d]", example.instruction)
        assert expression is not None
        assert eval(expression[0]) == int(numbers(rationale)[-1])


def test_a_solution_solves_its_equation() -> None:
    for example, rationale in draw("simple_equations"):
        left, right = re.split(r": ", example.instruction)[1].split(" = ")
        assert eval(re.sub(r"[a-z]", f"({numbers(rationale)[-1]})", left)) == int(right)


def test_against_reasoning_gym_legs() -> None:
    assert LEGS == ANIMALS


def test_leg_counting_counts_every_animal_of_the_question() -> None:
    for example, rationale in draw("leg_counting"):
        asked = re.findall(r"\d+", example.instruction)
        assert [count for count, op, _, _ in STATEMENT.findall(rationale) if op == "*"] == asked


def test_letter_counting_counts_in_words_of_the_text() -> None:
    for example, rationale in draw("letter_counting"):
        letter, text = re.findall(r'"(.*?)"', example.instruction)
        expected = [
            (word, str(word.lower().count(letter))) for word in text.split() if letter in word.lower()
        ]
        assert re.findall(r"(\w+) has (\d+)\.", rationale) == expected


def test_spell_backward_spells_the_word_and_the_answer() -> None:
    for example, rationale in draw("spell_backward"):
        word, backward = rationale.replace(" ", "").strip(".").split(".")
        assert example.instruction.endswith(f": {word}")
        assert backward == example.answer


def test_word_sequence_reversal_numbers_the_words() -> None:
    for example, rationale in draw("word_sequence_reversal"):
        asked, turned = rationale.strip(".").split(". ")
        assert example.instruction.endswith(": " + re.sub(r"\b\d (?=\w)", "", asked))
        assert re.sub(r"(?:^|(?<=, ))\d (?=\w)", "", turned) == example.answer


def test_number_filtering_keeps_the_answer() -> None:
    for example, rationale in draw("number_filtering"):
        steps = re.findall(rf"({NUMBER}) ([<=>]) ({NUMBER}): (keep|drop)\.", rationale)
        assert [number for number, _, _, verdict in steps if verdict == "keep"] == ast.literal_eval(
            example.gold
        )
        assert len(steps) == len(ast.literal_eval(re.findall(r"\[.*\]", example.instruction)[0]))
        assert all(eval(f"{a} {'==' if sign == '=' else sign} {b}") for a, sign, b, _ in steps)


def test_number_sorting_is_a_true_chain_of_the_answer() -> None:
    for example, rationale in draw("number_sorting"):
        assert numbers(rationale) == ast.literal_eval(example.gold)
        assert eval(rationale.rstrip(".").replace("=", "=="))


def test_gcd_divides_the_numbers_by_the_gcd() -> None:
    for example, rationale in draw("gcd"):
        asked = [int(number) for number in numbers(example.instruction)]
        steps = STATEMENT.findall(rationale)
        assert [int(number) for number, _, _, _ in steps] == asked
        assert {int(divisor) for _, _, divisor, _ in steps} == {math.gcd(*asked)}


def test_fraction_simplification_reaches_numerator_and_denominator() -> None:
    for example, rationale in draw("fraction_simplification"):
        steps = STATEMENT.findall(rationale)
        assert "/".join(number for number, *_ in steps) in example.instruction
        assert "/".join(result for *_, result in steps) == example.answer


def test_complex_arithmetic_reaches_both_parts() -> None:
    for example, rationale in draw("complex_arithmetic"):
        real, imaginary = (int(result) for *_, result in STATEMENT.findall(rationale))
        gold = complex(example.gold.replace(" ", "").replace("i", "j"))
        assert complex(real, imaginary) == gold


def test_prime_factorization_reaches_the_factors() -> None:
    for example, rationale in draw("prime_factorization"):
        factors = [divisor for _, _, divisor, _ in STATEMENT.findall(rationale)]
        last = rationale.removesuffix(" is prime.").split()[-1]
        assert " × ".join([*factors, last]) == example.answer


def test_count_primes_lists_the_primes() -> None:
    for example, rationale in draw("count_primes"):
        low, high = (int(number) for number in numbers(example.instruction))
        primes = [n for n in range(max(low, 2), high + 1) if all(n % d for d in range(2, math.isqrt(n) + 1))]
        assert rationale.startswith(", ".join(map(str, primes)) or "None")


def test_count_bits_takes_away_powers_of_two() -> None:
    for example, rationale in draw("count_bits"):
        powers = [int(power) for _, _, power, _ in STATEMENT.findall(rationale)]
        assert f"{sum(powers):b}".count("1") == len(powers) == int(example.gold)
        assert example.instruction.endswith(f" {sum(powers)}?")


@pytest.mark.parametrize(
    ("family", "metadata"),
    [
        ("syllogism", {}),
        ("basic_arithmetic", {"expression": "7 / 2"}),
        ("chain_sum", {"expression": "7"}),
        ("complex_arithmetic", {"operation": "*", "num1": (1.0, 2.0), "num2": (3.0, 4.0)}),
        ("gsm_symbolic", {"answer_cot": "2 + 2 = 4\n#### 5", "answer_value": 5}),
        ("gsm_symbolic", {"answer_cot": f"{'so ' * 70}2 + 2 = 4", "answer_value": 4}),
        ("lcm", {"numbers": [2, 3, 4]}),
        ("simple_equations", {"equation": "x**2 + 1 = 5", "variable": "x"}),
        ("simple_geometry", {"known_angles": [50.5, 60.0], "n_sides": 3}),
    ],
)
def test_no_rationale_where_there_is_no_short_way(family: str, metadata: dict[str, object]) -> None:
    assert write_rationale(family, metadata) is None


@pytest.mark.parametrize(
    ("equation", "steps"),
    [
        ("3*x + 5 = 17", "17 - 5 = 12. 12 / 3 = 4."),
        ("3*x - 5 = 7", "7 + 5 = 12. 12 / 3 = 4."),
        ("5 - 3*x = -7", "5 - -7 = 12. 12 / 3 = 4."),
        ("5 - x = 1", "5 - 1 = 4."),
        ("x + 5 = 9", "9 - 5 = 4."),
        ("-3*x = -12", "-12 / -3 = 4."),
        ("-x + 5 = 1", "1 - 5 = -4. -4 / -1 = 4."),
    ],
)
def test_equations_of_every_form(equation: str, steps: str) -> None:
    assert write_rationale("simple_equations", {"equation": equation, "variable": "x"}) == steps


def test_gsm_symbolic_is_cleaned() -> None:
    metadata = {
        "answer_cot": "- He has 2 + 2 = 4 pens\n\n* He sells 4 * 3 = 12.\n#### 12",
        "answer_value": 12,
    }
    assert write_rationale("gsm_symbolic", metadata) == "He has 2 + 2 = 4 pens. He sells 4 * 3 = 12."
