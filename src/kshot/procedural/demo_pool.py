"""The demo's pool of open rows: many reasoning-gym families in equal parts, and none of the demo's target."""

from collections.abc import Iterator
from itertools import islice
from random import Random

from kshot.errors import ConfigError
from kshot.examples import Example
from kshot.procedural.families import FAMILIES, stream_family

PLAIN_FAMILIES = (  # without rationales
    "aiw",
    "base_conversion",
    "caesar_cipher",
    "calendar_arithmetic",
    "coin_flip",
    "dice",
    "family_relationships",
    "number_format",
    "number_sequence",
    "palindrome_generation",
    "rotate_matrix",
    "sentence_reordering",
    "syllogism",
    "word_sorting",
)
POOL_FAMILIES: tuple[str, ...] = (*FAMILIES, *PLAIN_FAMILIES)
MAX_INSTRUCTION_CHARS = 400
MAX_ANSWER_CHARS = 120


def draw_pool(*, size: int = 4000, seed: int) -> list[Example]:
    """Draw open rows from every family of `POOL_FAMILIES`, equally many from each, in a shuffled order.

    Args:
        size: Rows to draw; what does not divide evenly goes to the first families, one row each.
        seed: At least 0. Take another seed than the bank's, whose rows the pool would repeat.

    Returns:
        Examples with instructions of at most 400 characters and answers of at most 120; an id begins
        with the family's name.

    Raises:
        ConfigError: `size` is below the number of families or too large for one of them; `seed` is below 0.
        MissingExtraError: reasoning-gym is not installed.
    """
    count = len(POOL_FAMILIES)
    if size < count:
        raise ConfigError(f"size must be at least {count}, one row a family, got {size}")
    pool: list[Example] = []
    for place, family in enumerate(POOL_FAMILIES):
        share = size // count + (place < size % count)
        rows = list(islice(_short_rows(family, seed), share))
        if len(rows) < share:
            raise ConfigError(
                f"expected {share} short rows of {family!r}, found {len(rows)}: lower the pool's size"
            )
        pool += rows
    Random(seed).shuffle(pool)
    return pool


def _short_rows(family: str, seed: int) -> Iterator[Example]:
    for example in stream_family(family, seed=seed):
        if len(example.instruction) <= MAX_INSTRUCTION_CHARS and len(example.gold) <= MAX_ANSWER_CHARS:
            yield example
