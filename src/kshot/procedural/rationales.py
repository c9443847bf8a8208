"""A writer per reasoning-gym family: from a question's metadata to the few steps that lead to its answer.

A 135M model must be able to learn them, so a rationale is short (aim: 15 to 45 tokens) and ends at the
answer.
A writer returns None for a row without a short way, and such rows are not drawn.
"""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import pairwise
from math import gcd
from typing import Any

from kshot.procedural.steps import apply, evaluate_steps, multiply_steps, state, sum_steps

Metadata = Mapping[str, Any]
Writer = Callable[[Metadata], str | None]

LEGS = {  # reasoning-gym 0.1.25 counts these, and does not tell in the metadata
    "snake": 0, "sea slug": 0, "jellyfish": 0, "flatworm": 0, "leech": 0,
    "chicken": 2, "bird": 2, "human": 2, "duck": 2,
    "dog": 4, "cat": 4, "cow": 4, "horse": 4, "lion": 4,
    "elephant": 4, "giraffe": 4, "tiger": 4, "deer": 4, "sheep": 4,
    "starfish": 5,
    "insect": 6, "ant": 6, "butterfly": 6, "beetle": 6, "bee": 6, "wasp": 6,
    "grasshopper": 6, "cricket": 6, "cockroach": 6, "praying mantis": 6, "firefly": 6,
    "spider": 8, "scorpion": 8,
    "crab": 10, "lobster": 10, "shrimp": 10,
    "woodlouse": 14,
}  # fmt: skip
GSM_MAX_CHARS = 200


def write_rationale(family: str, metadata: Metadata) -> str | None:
    """Write the steps to the answer of a row.

    Args:
        family: Name of the reasoning-gym family.
        metadata: The row's metadata as reasoning-gym gives it.

    Returns:
        The steps as one line, or None if the family has no writer or the row no short way.
    """
    writer = WRITERS.get(family)
    return writer(metadata) if writer else None


def _expression(metadata: Metadata) -> str | None:
    steps, _ = evaluate_steps(metadata["expression"])
    exact = all("." not in step[:-1] for step in steps)  # reasoning-gym divides with rest
    return " ".join(steps) if steps and exact else None


def _decimal_expression(metadata: Metadata) -> str | None:
    return " ".join(evaluate_steps(metadata["expression"])[0]) or None


def _products(metadata: Metadata) -> str | None:
    first, *others = (int(number) for number in metadata["expression"].split(" * "))
    steps: list[str] = []
    for factor in others:
        steps += multiply_steps(first, factor)
        first *= factor
    return " ".join(steps) or None


def _simple_equations(metadata: Metadata) -> str | None:
    """Undo the constant, then the coefficient, of `a*x + b = c`, `b - a*x = c` and their like."""
    left, right = metadata["equation"].split(" = ")
    name = re.escape(metadata["variable"])
    match = re.fullmatch(rf"(?:(-?\d+) ([+-]) )?(?:(-?\d+)\*|(-?)){name}(?: ([+-]) (\d+))?", left)
    if match is None:
        return None
    before, joint, factor, minus, sign, after = match.groups()
    coefficient, value = int(factor or f"{minus}1"), Decimal(right)
    steps: list[str] = []
    if before is not None and joint == "-":
        steps.append(state(int(before), "-", value))
        value = int(before) - value
    elif before is not None or after is not None:
        undo = "+" if sign == "-" else "-"
        steps.append(state(value, undo, int(before or after)))
        value = apply(value, undo, int(before or after))
    if coefficient != 1:
        steps.append(state(value, "/", coefficient))
    return " ".join(steps) or None


def _leg_counting(metadata: Metadata) -> str:
    animals: Mapping[str, int] = metadata["animals"]
    legs = [count * LEGS[animal] for animal, count in animals.items()]
    each = [
        f"{_count(n, animal)} {n} * {LEGS[animal]} = {n * LEGS[animal]} legs."
        for animal, n in animals.items()
    ]
    return " ".join(each + sum_steps(legs))


def _count(number: int, animal: str) -> str:
    """Name the animals as reasoning-gym's question does: a plain "s" for more than one."""
    return f"{number} {animal} has" if number == 1 else f"{number} {animal}s have"


def _letter_counting(metadata: Metadata) -> str:
    counts = [(word, word.lower().count(metadata["target_letter"])) for word in metadata["span"]]
    found = [(word, count) for word, count in counts if count]
    return " ".join(
        [f"{word} has {count}." for word, count in found] + sum_steps([count for _, count in found])
    )


def _spell_backward(metadata: Metadata) -> str:
    return f"{' '.join(metadata['word'])}. {' '.join(reversed(metadata['word']))}."


def _word_sequence_reversal(metadata: Metadata) -> str:
    numbered = [f"{number} {word}" for number, word in enumerate(metadata["words"], start=1)]
    return f"{', '.join(numbered)}. {', '.join(reversed(numbered))}."


def _number_filtering(metadata: Metadata) -> str:
    limit, wanted = Decimal(metadata["filter_value"]), metadata["operation"]
    steps: list[str] = []
    for text in metadata["original_numbers"]:
        number = Decimal(text)
        sign = ">" if number > limit else "<" if number < limit else "="
        named = sign == (">" if wanted.endswith("larger") else "<")
        kept = named if wanted.startswith("keep") else not named
        steps.append(f"{text} {sign} {metadata['filter_value']}: {'keep' if kept else 'drop'}.")
    return " ".join(steps)


def _number_sorting(metadata: Metadata) -> str:
    numbers = metadata["sorted_numbers"]
    sign = "<" if metadata["direction"] == "ascending" else ">"
    text = str(numbers[0])
    for left, right in pairwise(numbers):
        text += f" {'=' if Decimal(left) == Decimal(right) else sign} {right}"
    return f"{text}."


def _gcd(metadata: Metadata) -> str:
    divisor = metadata["result"]
    return " ".join(
        [state(number, "/", divisor) for number in metadata["numbers"]] + [f"The GCD is {divisor}."]
    )


def _lcm(metadata: Metadata) -> str | None:
    if len(metadata["numbers"]) != 2:
        return None
    a, b = sorted(metadata["numbers"], reverse=True)
    divisor = gcd(a, b)
    rest = b // divisor
    steps = [state(b, "/", divisor)] if divisor > 1 else []
    return " ".join(steps + (multiply_steps(a, rest) if rest > 1 else [state(a, "*", 1)]))


def _fraction_simplification(metadata: Metadata) -> str:
    factor = metadata["reduction_factor"]
    return f"{state(metadata['numerator'], '/', factor)} {state(metadata['denominator'], '/', factor)}"


def _prime_factorization(metadata: Metadata) -> str:
    rest, steps = metadata["number"], []
    for factor in metadata["factors"][:-1]:
        steps.append(state(rest, "/", factor))
        rest //= factor
    return " ".join([*steps, f"{rest} is prime."])


def _count_primes(metadata: Metadata) -> str:
    primes = metadata["primes"]
    return f"{', '.join(map(str, primes)) or 'None'}. The count is {len(primes)}."


def _count_bits(metadata: Metadata) -> str:
    rest, steps = metadata["number"], []
    while rest:
        power = 1 << (rest.bit_length() - 1)
        steps.append(state(rest, "-", power))
        rest -= power
    return " ".join([*steps, f"The count is {len(steps)}."])


def _simple_geometry(metadata: Metadata) -> str | None:
    angles = [Decimal(str(angle)).quantize(Decimal("1")) for angle in metadata["known_angles"]]
    if any(
        angle != Decimal(str(given)) for angle, given in zip(angles, metadata["known_angles"], strict=True)
    ):
        return None
    triangles = metadata["n_sides"] - 2
    total = [] if triangles == 1 else [state(triangles, "*", 180)]
    return " ".join([*total, *sum_steps(angles), state(triangles * 180, "-", sum(angles))])


def _complex_arithmetic(metadata: Metadata) -> str | None:
    op = metadata["operation"]
    if op not in "+-":
        return None
    (a, b), (c, d) = metadata["num1"], metadata["num2"]
    return f"{state(int(a), op, int(c))} {state(int(b), op, int(d))}"


def _gsm_symbolic(metadata: Metadata) -> str | None:
    lines = metadata["answer_cot"].split("####")[0].splitlines()
    cleaned = [line.strip().lstrip("-*• ").strip() for line in lines]
    text = " ".join(line if line.endswith(".") else f"{line}." for line in cleaned if line)
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    leads = bool(numbers) and numbers[-1] == f"{metadata['answer_value']:.12g}"
    return text if leads and len(text) <= GSM_MAX_CHARS else None


WRITERS: dict[str, Writer] = {
    "basic_arithmetic": _expression,
    "chain_sum": _expression,
    "complex_arithmetic": _complex_arithmetic,
    "count_bits": _count_bits,
    "count_primes": _count_primes,
    "decimal_chain_sum": _decimal_expression,
    "fraction_simplification": _fraction_simplification,
    "gcd": _gcd,
    "gsm_symbolic": _gsm_symbolic,
    "lcm": _lcm,
    "leg_counting": _leg_counting,
    "letter_counting": _letter_counting,
    "number_filtering": _number_filtering,
    "number_sorting": _number_sorting,
    "prime_factorization": _prime_factorization,
    "products": _products,
    "simple_equations": _simple_equations,
    "simple_geometry": _simple_geometry,
    "spell_backward": _spell_backward,
    "word_sequence_reversal": _word_sequence_reversal,
}
