"""The demo's pool of open rows."""

from collections import Counter

import pytest

from kshot.errors import ConfigError
from kshot.procedural import FAMILIES, draw_pool, draw_shopping
from kshot.procedural.demo_pool import POOL_FAMILIES


def test_invariant_families_have_equal_parts() -> None:
    pool = draw_pool(seed=1)
    counts = Counter(row.id.split("-")[0] for row in pool)
    assert len(pool) == 4000
    assert set(counts) == set(POOL_FAMILIES)
    assert len(counts) >= 24
    assert max(counts.values()) - min(counts.values()) <= 1


def test_invariant_rows_are_short_distinct_and_not_the_target() -> None:
    pool = draw_pool(seed=1)
    shopping = {row.instruction for row in draw_shopping(size=5000, seed=1)}
    assert len({row.instruction for row in pool}) == len({row.id for row in pool}) == len(pool)
    assert not shopping & {row.instruction for row in pool}
    assert max(len(row.instruction) for row in pool) <= 400
    assert max(len(row.gold) for row in pool) <= 120


def test_rationales_where_writers_exist() -> None:
    for row in draw_pool(size=360, seed=2):
        assert (row.rationale is not None) == (row.id.split("-")[0] in FAMILIES)


def test_too_small() -> None:
    with pytest.raises(
        ConfigError, match=f"size must be at least {len(POOL_FAMILIES)}, one row a family, got 5"
    ):
        draw_pool(size=5, seed=0)


def test_too_large() -> None:
    with pytest.raises(ConfigError, match="short rows of 'count_bits', found 1023: lower the pool's size"):
        draw_pool(size=1100 * len(POOL_FAMILIES), seed=0)
