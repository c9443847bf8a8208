"""Rows of a reasoning-gym family as examples, in sizes that a 135M model can learn."""

import difflib
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from kshot.errors import ConfigError, MissingExtraError
from kshot.examples import Example
from kshot.procedural.rationales import WRITERS, write_rationale

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # in cellpylib, when it is compiled on first import
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
except ImportError:
    reasoning_gym = None

FAMILIES: tuple[str, ...] = tuple(WRITERS)
"""Families whose every row has a rationale."""

FAMILY_CONFIGS: dict[str, dict[str, object]] = {
    "basic_arithmetic": {"min_terms": 2, "max_terms": 3, "max_digits": 1, "allow_negation": False},
    "caesar_cipher": {"min_words": 1, "max_words": 3, "max_rotation": 5},
    "chain_sum": {"min_terms": 2, "max_terms": 3, "max_digits": 2},
    "coin_flip": {"max_trials": 30},
    "complex_arithmetic": {"operations": ("+", "-"), "operations_weights": [0.5, 0.5]},
    "count_bits": {"max_n": 1023},
    "count_primes": {"max_n": 50},
    "decimal_chain_sum": {"min_terms": 2, "max_terms": 3, "max_digits": 1, "max_decimal_places": 1},
    "fraction_simplification": {"max_value": 20, "min_factor": 2, "max_factor": 9, "styles": ("plain",)},
    "gcd": {"min_value": 2, "max_value": 99},
    "lcm": {"min_value": 2, "max_value": 36},
    "leg_counting": {"min_animals": 2, "max_animals": 3, "max_instances": 9},
    "letter_counting": {"min_words": 3, "max_words": 6},
    "number_filtering": {"max_numbers": 6, "max_decimals": 0, "min_value": 0.0, "max_value": 99.0},
    "number_sorting": {"max_numbers": 5, "max_decimals": 0, "min_value": 0.0, "max_value": 99.0},
    "prime_factorization": {"max_value": 999},
    "products": {"max_digits": 2, "allow_negation": True},
    "rotate_matrix": {"max_n": 3, "min_rotations": 1, "max_rotations": 3},
    "sentence_reordering": {"max_words_in_sentence": 6},
    "simple_equations": {"max_terms": 2, "max_value": 9, "operators_weights": [0.5, 0.5, 0.0]},
    "simple_geometry": {"max_sides": 4},
    "spell_backward": {"max_word_len": 7},
    "word_sequence_reversal": {"max_words": 5},
    "word_sorting": {"max_words": 5},
}

UNSTABLE = frozenset(
    {
        "codeio",
        "intermediate_integration",
        "isomorphic_strings",
        "knight_swap",
        "list_functions",
        "polynomial_multiplication",
        "ransom_note",
        "time_intervals",
        "word_ladder",
    }
)
"""Families of reasoning-gym 0.1.25 whose rows follow PYTHONHASHSEED or the date, found by drawing twice."""

STREAM = 100_000  # draws per seed: reasoning-gym seeds row i with seed + i, so near seeds would share rows


def draw_family(
    family: str, *, size: int, seed: int, config: Mapping[str, object] | None = None
) -> list[Example]:
    """Draw distinct rows of a reasoning-gym family.

    Rows of two seeds come from separate streams. A small family may still yield the same question in
    both: whoever splits train and test compares instructions.

    Args:
        family: Name of the family, such as "chain_sum".
        size: Rows to draw, at least 1.
        seed: At least 0; the same rows come from the same seed in every process.
        config: Settings of reasoning-gym that take the place of those in `FAMILY_CONFIGS`.

    Returns:
        Examples with `output` "The answer is {answer}.", and a rationale where the family has a writer.

    Raises:
        ConfigError: Family unknown or in `UNSTABLE`, setting unknown, size or seed out of range, or too few
            distinct rows.
        MissingExtraError: reasoning-gym is not installed.
    """
    if size < 1:
        raise ConfigError(f"size must be at least 1, got {size}")
    examples = list(islice(stream_family(family, seed=seed, config=config), size))
    if len(examples) < size:
        raise ConfigError(
            f"expected {size} distinct rows of {family!r}, found {len(examples)} in {STREAM} draws: "
            "lower size or widen the family's config"
        )
    return examples


def stream_family(family: str, *, seed: int, config: Mapping[str, object] | None = None) -> Iterator[Example]:
    """Yield what `draw_family` draws, in its order, until the `STREAM` draws of the seed are used up.

    Raises:
        ConfigError: As `draw_family`, size apart.
        MissingExtraError: reasoning-gym is not installed.
    """
    _check(family, seed)
    keep = _ROW_FILTERS.get(family) if config is None else None
    seen: set[str] = set()
    for index, row in enumerate(_rows(family, seed, {**FAMILY_CONFIGS.get(family, {}), **(config or {})})):
        answer, question = row["answer"], row["question"].strip()
        if answer is None or question in seen or (keep and not keep(row["metadata"])):
            continue
        rationale = write_rationale(family, row["metadata"])
        if rationale is None and family in WRITERS:
            continue
        seen.add(question)
        yield Example(
            instruction=question,
            output=f"The answer is {answer}.",
            answer=str(answer),
            rationale=rationale,
            id=f"{family}-{seed}-{index}",
        )


def _check(family: str, seed: int) -> None:
    if reasoning_gym is None:
        raise MissingExtraError("procedural families need reasoning-gym: pip install 'kshot[demo]'")
    if family not in DATASETS:
        near = difflib.get_close_matches(family, DATASETS, n=3, cutoff=0.4)
        raise ConfigError(
            f"expected a reasoning-gym family, got {family!r}; the nearest are {', '.join(near) or 'none'}"
        )
    if family in UNSTABLE:
        raise ConfigError(f"{family!r} does not draw the same rows in every process: choose another family")
    if seed < 0:
        raise ConfigError(
            f"seed must be at least 0, got {seed}: Python draws the same from a seed and its negative"
        )


def _rows(family: str, seed: int, settings: Mapping[str, object]) -> Iterator[Mapping[str, Any]]:
    try:
        dataset = reasoning_gym.create_dataset(family, seed=seed * STREAM, size=STREAM, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"reasoning-gym refuses the config {dict(settings)} of {family!r}: {error}"
        ) from error
    yield from (dataset[index] for index in range(STREAM))


def _one_digit_factor(metadata: Mapping[str, Any]) -> bool:
    """Keep 1 x 1 and 1 x 2 digits: reasoning-gym draws both factors from one range, so most rows go."""
    low = min(int(number) for number in metadata["expression"].split(" * "))
    return 2 <= low <= 9


_ROW_FILTERS: dict[str, Callable[[Mapping[str, Any]], bool]] = {"products": _one_digit_factor}
