"""Drawing rows of a family."""

import subprocess
import sys

import pytest

from kshot.errors import ConfigError
from kshot.procedural import FAMILIES, draw_family

DIGEST = """
import hashlib
from kshot.procedural import FAMILIES, draw_family, draw_pool, draw_shopping
rows = [draw_family(family, size=60, seed=3) for family in FAMILIES]
rows += [draw_pool(size=720, seed=3), draw_shopping(size=200, seed=3)]
print(hashlib.sha256(repr(rows).encode()).hexdigest())
"""
WITHOUT_GYM = """
import sys
sys.modules["reasoning_gym"] = None
from kshot.errors import MissingExtraError
from kshot.procedural import draw_family, draw_shopping
draw_shopping(size=1, seed=0)
try:
    draw_family("chain_sum", size=1, seed=0)
except MissingExtraError as error:
    print(error)
"""


def run_python(code: str, hash_seed: str) -> str:
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_invariant_same_rows_in_every_process() -> None:
    first, second = run_python(DIGEST, "1"), run_python(DIGEST, "2")
    assert len(first) == 64
    assert first == second


def test_missing_reasoning_gym_names_the_extra() -> None:
    assert run_python(WITHOUT_GYM, "0").endswith("pip install 'kshot[demo]'")


@pytest.mark.parametrize("family", FAMILIES)
def test_invariant_rows_are_distinct_and_whole(family: str) -> None:
    rows = draw_family(family, size=200, seed=5)
    assert len({row.instruction for row in rows}) == len({row.id for row in rows}) == 200
    for row in rows:
        assert row.output == f"The answer is {row.answer}."
        assert row.instruction == row.instruction.strip()
        assert row.id.startswith(f"{family}-5-")
        assert row.rationale


def test_invariant_a_smaller_draw_is_the_beginning_of_a_larger() -> None:
    assert draw_family("chain_sum", size=20, seed=1) == draw_family("chain_sum", size=50, seed=1)[:20]


def test_near_seeds_share_no_stream() -> None:
    first, second = (draw_family("spell_backward", size=100, seed=seed) for seed in (0, 1))
    assert len({row.instruction for row in first} & {row.instruction for row in second}) < 10


def test_products_have_a_factor_of_one_digit() -> None:
    for row in draw_family("products", size=200, seed=2):
        factors = row.instruction.split(": ")[1].split(".")[0].split(" * ")
        assert min(map(len, factors)) == 1
        assert max(map(len, factors)) <= 2


def test_config_takes_the_place_of_the_default() -> None:
    rows = draw_family(
        "products", size=20, seed=0, config={"min_digits": 3, "max_digits": 3, "allow_negation": False}
    )
    assert all(len(row.gold) >= 5 for row in rows)


def test_family_without_writer_has_no_rationale() -> None:
    assert {row.rationale for row in draw_family("syllogism", size=5, seed=0)} == {None}


def test_unknown_family_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="got 'chainsum'; the nearest are chain_sum"):
        draw_family("chainsum", size=1, seed=0)


def test_family_that_is_not_repeatable_is_refused() -> None:
    with pytest.raises(ConfigError, match="'list_functions' does not draw the same rows in every process"):
        draw_family("list_functions", size=1, seed=0)


def test_too_few_distinct_rows_tells_how_many() -> None:
    with pytest.raises(
        ConfigError, match="expected 50 distinct rows of 'count_bits', found 10 in 100000 draws"
    ):
        draw_family("count_bits", size=50, seed=0, config={"max_n": 10})


@pytest.mark.parametrize("config", [{"max_terms": 0}, {"terms": 3}])
def test_refused_config(config: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"reasoning-gym refuses the config .* of 'chain_sum'"):
        draw_family("chain_sum", size=1, seed=0, config=config)


def test_size_out_of_range() -> None:
    with pytest.raises(ConfigError, match="size must be at least 1, got 0"):
        draw_family("chain_sum", size=0, seed=0)


def test_negative_seed() -> None:
    with pytest.raises(ConfigError, match="seed must be at least 0, got -1"):
        draw_family("chain_sum", size=1, seed=-1)
