"""Selection: a bank of five by hand, a brute-force reference, invariants and refusals."""

import json
import math
import re
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.errors import AdapterError, ConfigError
from kshot.experts.selection import ExpertSelection, select_experts
from kshot.experts.similarity import Similarity

from .scores import Score, similarity_of

METHODS = ["paper", "balanced"]

# RP: a 1, b 2, c 3, d 4, e 5. RA: b 1, a and c 2.5, d 4, e 5. Sums: a 3.5, b 3, c 5.5, d 8, e 10.
FIVE = [
    Score("a", 0.6, 2.0),
    Score("b", 0.8, 3.0),
    Score("c", 0.6, 4.0),
    Score("d", 0.5, 5.0),
    Score("e", 0.1, math.inf, math.inf),
]
FIVE_PAIRS = {"ab": 0.9, "ac": 0.8, "ad": 0.4, "bc": 0.7, "bd": 0.7, "cd": 0.1}
FIVE_SIMILARITY = similarity_of("abcde", FIVE_PAIRS)


def _select(
    scores: list[Score] = FIVE, similarity: Similarity = FIVE_SIMILARITY, **more: Any
) -> ExpertSelection:
    return select_experts(scores, similarity, **{"num_experts": 2, "num_candidates": 4} | more)


def test_golden_ranks_by_hand() -> None:
    ranking = _select().ranking
    assert [one.name for one in ranking] == ["b", "a", "c", "d", "e"]
    assert [one.rank_ppl for one in ranking] == [2, 1, 3, 4, 5]
    assert [one.rank_accuracy for one in ranking] == [1, 2.5, 2.5, 4, 5]
    assert [one.rank_sum for one in ranking] == [3, 3.5, 5.5, 8, 10]
    assert [one.reasoning_ppl for one in ranking] == [3, 2, 4, 5, math.inf]
    assert _select().candidates == ranking[:4]
    assert _select().best_single == "b"


def _row(group: Any) -> tuple[Any, ...]:
    return "".join(group.members), group.quality, group.similarity, group.similarity_rank, group.total


def test_golden_groups_by_hand() -> None:
    assert [_row(group) for group in _select().groups] == [
        ("bc", 8.5, 0.7, 3.5, 12),
        ("ba", 6.5, 0.9, 6, 12.5),
        ("ad", 11.5, 0.4, 2, 13.5),
        ("ac", 9, 0.8, 5, 14),
        ("bd", 11, 0.7, 3.5, 14.5),  # before cd: the less sum of ranks settles a tie
        ("cd", 13.5, 0.1, 1, 14.5),
    ]
    assert _select().experts == ("b", "c")


def test_golden_balanced_groups_by_hand() -> None:
    # sums of ranks 6.5 to 13.5, similarities 0.1 to 0.9
    groups = _select(method="balanced").groups
    want = {
        "ba": 1,
        "cd": 1,  # behind ba: the less sum of ranks settles a tie
        "bc": 2 / 7 + 0.75,
        "ad": 5 / 7 + 0.375,
        "ac": 2.5 / 7 + 0.875,
        "bd": 4.5 / 7 + 0.75,
    }
    assert ["".join(group.members) for group in groups] == list(want)
    assert [group.total for group in groups] == pytest.approx(list(want.values()))
    assert [group.similarity_rank for group in groups] == [None] * 6


def test_golden_three_of_three() -> None:
    chosen = _select(num_experts=3, num_candidates=3)
    assert [_row(group) for group in chosen.groups] == [("bac", 12, 0.8, 1, 13)]
    assert chosen.why() == (
        "Chose b, a, c out of 5 adapters: sum of ranks 12, mean similarity 0.800 (rank 1 of 1), total 13. "
        "There was no other group."
    )
    assert (
        _select(num_experts=3, num_candidates=3, method="balanced").groups[0].total == 0
    )  # both terms constant


def test_a_single_expert_is_the_best_single() -> None:
    chosen = _select(num_experts=1)
    assert chosen.experts == ("b",) == (chosen.best_single,)
    assert [_row(group) for group in chosen.groups][:2] == [("b", 3, 0, 2.5, 5.5), ("a", 3.5, 0, 2.5, 6)]


def test_a_bank_smaller_than_num_candidates_is_taken_whole() -> None:
    chosen = _select(num_candidates=8)
    assert len(chosen.candidates) == 5
    assert len(chosen.groups) == 10


def test_why_names_terms_runners_up_and_margins() -> None:
    assert _select().why() == (
        "Chose b, c out of 5 adapters: sum of ranks 8.5, mean similarity 0.700 (rank 3.5 of 6), total 12. "
        "The runner-up takes a instead of c: sum of ranks 6.5, mean similarity 0.900 (rank 6 of 6), "
        "total 12.5; it loses by 0.5. Behind it: a, d instead of b, c, 1.5 behind; a instead of b, 2 behind."
    )
    assert [group.members for group in _select().runners_up] == [("b", "a"), ("a", "d"), ("a", "c")]
    assert "total 1 with both scaled to [0, 1]; the totals are equal, and the smaller sum of ranks" in (
        _select(method="balanced").why()
    )


def _equal(name: str) -> Score:
    return Score(name, 0.5, 2.0)


@pytest.mark.parametrize(
    ("scores", "pairs", "experts", "reason"),
    [
        # sums of ranks 2, 4, 6: ab 6 + RD 3 equals ac 8 + RD 1
        (
            [Score("a", 0.9, 1), Score("b", 0.8, 2), Score("c", 0.7, 3)],
            {"ab": 0.5, "ac": 0.1, "bc": 0.4},
            ("a", "b"),
            "the totals are equal, and the smaller sum of ranks decided",
        ),
        (  # sums of ranks 2, 4, 6, 8: za and bc are both 10 + 1.5, and a comes before b
            [Score("z", 0.9, 1), Score("b", 0.8, 2), Score("c", 0.7, 3), Score("a", 0.6, 4)],
            {"za": 0.1, "bc": 0.1, "zb": 0.9, "zc": 0.8},
            ("z", "a"),
            "equal in every term, and the names decided",
        ),
        (
            [_equal("b"), _equal("c"), _equal("a")],
            {},
            ("a", "b"),
            "equal in every term, and the names decided",
        ),
    ],
)
def test_ties_are_settled_and_named(
    scores: list[Score], pairs: dict[str, float], experts: tuple[str, ...], reason: str
) -> None:
    chosen = _select(scores, similarity_of([one.name for one in scores], pairs))
    assert chosen.experts == experts
    assert reason in chosen.why()


def test_similarities_that_differ_by_rounding_are_tied() -> None:
    pairs = {"ab": 0.1, "ac": 0.2, "bc": 0.3, "ad": 0.3, "bd": 0.2, "cd": 0.1}
    groups = _select([_equal(name) for name in "abcd"], similarity_of("abcd", pairs), num_experts=3).groups
    assert {group.similarity_rank for group in groups} == {2.5}


def test_json_is_strict_and_complete() -> None:
    names = [f"m{index:02d}" for index in range(9)]
    scores = [Score(name, 0.5, math.inf if name == "m08" else 1 + index) for index, name in enumerate(names)]
    chosen = select_experts(scores, similarity_of(names), num_candidates=9, exclude=["m00"])
    found = json.loads(json.dumps(chosen.to_json(), allow_nan=False))
    assert found["experts"] == list(chosen.experts)
    assert found["best_single"] == "m01"
    assert found["why"] == chosen.why()
    assert found["excluded"] == ["m00"]
    assert (found["method"], found["search"], found["gap"]) == ("paper", "exact", 0)
    assert (found["num_near_ties"], found["measures"], found["folds"]) == (None, {}, None)
    assert found["num_groups"] == len(found["groups"]) == 70
    assert found["ranking"][-1]["reasoning_ppl"] is None
    assert found["groups"][0]["members"] == list(chosen.experts)
    more = select_experts(scores, similarity_of(names), num_candidates=9).to_json()
    assert (more["num_groups"], len(more["groups"])) == (126, 70)


def _brute_force(
    scores: list[Score], similarity: Similarity, N: int, C: int, method: str
) -> list[tuple[str, ...]]:
    """All groups, best first, in exact arithmetic."""

    def rank(value: float, values: list[float]) -> Fraction:
        return Fraction(2 * sum(one < value for one in values) + sum(one == value for one in values) + 1, 2)

    def scaled(terms: dict[Any, Any]) -> dict[Any, Any]:
        low, high = min(terms.values()), max(terms.values())
        spread = high - low if high - low > 1e-12 else 0
        return {key: (value - low) / spread if spread else 0 for key, value in terms.items()}

    ppl, acc = [one.reasoning_ppl for one in scores], [-one.accuracy for one in scores]
    q = {one.name: rank(one.reasoning_ppl, ppl) + rank(-one.accuracy, acc) for one in scores}
    best = [s.name for s in sorted(scores, key=lambda s: (q[s.name], s.reasoning_ppl, s.name))][:C]
    sims = {group: similarity.mean_pairwise(group) for group in combinations(best, N)}
    quality = {group: sum(q[name] for name in group) for group in sims}
    rounded = [round(value, 6) for value in sims.values()]
    ranks = {group: rank(round(sims[group], 6), rounded) for group in sims}
    scaled_quality, scaled_sims = scaled(quality), scaled(sims)
    total = {
        group: quality[group] + ranks[group]
        if method == "paper"
        else round(float(scaled_quality[group]) + scaled_sims[group], 12)
        for group in sims
    }
    return sorted(sims, key=lambda group: (total[group], quality[group], sorted(group)))


@st.composite
def banks(draw: st.DrawFn) -> tuple[list[Score], Similarity]:
    """Scores with many ties and a random similarity."""
    size = draw(st.integers(4, 11))
    names = [f"m{index}" for index in range(size)]
    accuracy = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    ppl = st.one_of(st.sampled_from([2.0, 3.0, math.inf]), st.floats(1, 1e6))
    scores = [Score(name, draw(accuracy), draw(ppl)) for name in names]
    rng = np.random.default_rng(draw(st.integers(0, 1_000)))
    upper = np.triu(np.round(rng.uniform(-0.2, 1, (size, size)), draw(st.sampled_from([1, 9]))), 1)
    return scores, Similarity(tuple(names), upper + upper.T + np.eye(size))


@given(banks(), st.integers(1, 4), st.integers(4, 7), st.sampled_from(METHODS))
@settings(max_examples=150, deadline=None)
def test_against_brute_force(bank: tuple[list[Score], Similarity], N: int, C: int, method: Any) -> None:
    scores, similarity = bank
    chosen = select_experts(scores, similarity, num_experts=N, num_candidates=C, method=method)
    assert [group.members for group in chosen.groups] == _brute_force(scores, similarity, N, C, method)
    assert chosen.experts == chosen.groups[0].members


@given(banks(), st.randoms(use_true_random=False), st.sampled_from(METHODS))
@settings(max_examples=100, deadline=None)
def test_invariant_order_of_scores_and_of_similarity(
    bank: tuple[list[Score], Similarity], random, method
) -> None:
    scores, similarity = bank
    shuffled, names = random.sample(scores, len(scores)), random.sample(similarity.names, len(scores))
    chosen = select_experts(scores, similarity, method=method)
    assert chosen == select_experts(scores, similarity, method=method)
    again = select_experts(shuffled, Similarity(tuple(names), similarity.among(names)), method=method)
    assert chosen == again


@given(banks(), st.data())
@settings(max_examples=100, deadline=None)
def test_invariant_excluded_adapters_never_count(
    bank: tuple[list[Score], Similarity], data: st.DataObject
) -> None:
    scores, similarity = bank
    excluded = data.draw(st.sets(st.sampled_from([one.name for one in scores]), max_size=len(scores) - 2))
    chosen = select_experts(scores, similarity, num_experts=2, exclude=sorted(excluded))
    rest = [one for one in scores if one.name not in excluded]
    without = select_experts(rest, similarity, num_experts=2)
    assert chosen.excluded == tuple(sorted(excluded))
    assert (chosen.ranking, chosen.groups) == (without.ranking, without.groups)


def test_exclude_takes_names_patterns_and_adapters_that_failed() -> None:
    names = ["arc-easy", "arc-challenge", "gsm8k", "mawps", "broken"]
    scores = [Score(name, 0.5, math.nan if name == "broken" else 2.0) for name in names]
    chosen = _select(scores, similarity_of(names), exclude=["arc-*", "broken"])
    assert chosen.excluded == ("arc-challenge", "arc-easy", "broken")
    assert set(chosen.experts) == {"gsm8k", "mawps"}
    bracketed = [_equal("a[1]"), _equal("a1"), _equal("b")]
    assert _select(bracketed, similarity_of(["a1", "b"]), exclude=["a[1]"]).excluded == ("a[1]",)


def test_only_candidates_need_asimilarity_of() -> None:
    assert _select(similarity=similarity_of("abcd", FIVE_PAIRS)) == _select()
    with pytest.raises(ConfigError, match="similarity is known, got 'd'"):
        _select(similarity=similarity_of("abce"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "experts.num_experts must be at least 1, got 0"),
        ({"num_candidates": 1}, "experts.num_candidates must be at least num_experts = 2, got 1"),
        ({"method": "equal"}, "experts.method must be one of paper, balanced, robust, got 'equal'"),
        ({"exclude": ["a", "arc-*"]}, r"got 'arc-*', which matches none; nearest: "),
        ({"scores": [], "exclude": ["x"]}, "got 'x', which matches none; nearest: none in the bank"),
        ({"scores": []}, "at least experts.num_experts = 2 adapters, got 0: lower"),
        ({"exclude": ["[abcd]"]}, "at least experts.num_experts = 2 adapters, got 1 after 4 excluded: lower"),
        ({"scores": [*FIVE, FIVE[0]]}, "expected one score for each adapter, got several for a"),
        ({"scores": [*FIVE[:4], Score("e", 1, 1, n=15)]}, "the same shots, got 15 to 16 of them: score"),
    ],
)
def test_refuses_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        _select(**change)


def test_names_the_nearest_adapters() -> None:
    names = ["arc-easy", "arc-challenge", "gsm8k", "mawps"]
    with pytest.raises(ConfigError, match="got 'gsm-8k', which matches none; nearest: gsm8k"):
        _select([_equal(name) for name in names], similarity_of(names), exclude=["gsm-8k"])


@pytest.mark.parametrize("number", ["accuracy", "reasoning_ppl", "mean_nll"])
def test_refuses_scores_that_are_no_numbers(number: str) -> None:
    bad = Score(**{"name": "bad", "accuracy": 0.5, "reasoning_ppl": 2.0, number: math.nan})
    with pytest.raises(AdapterError, match=f"adapter 'bad': .* got {number} = nan: .* experts.exclude"):
        _select([*FIVE, bad])


def test_refuses_more_groups_than_can_be_ranked() -> None:
    names = [f"m{index:02d}" for index in range(72)]
    scores = [Score(name, 0.5, 2.0 + index) for index, name in enumerate(names)]
    settings = {"num_candidates": 72, "num_experts": 4}
    with pytest.raises(
        ConfigError,
        match=r"method paper ranks every group: expected at most 1,000,000, got 1,028,790 of 4 experts from "
        "72 candidates: lower experts.num_candidates, or use method balanced",
    ):
        select_experts(scores, similarity_of(names), **settings)  # type: ignore[arg-type]
    chosen = select_experts(scores, similarity_of(names), method="balanced", **settings)  # type: ignore[arg-type]
    assert chosen.experts == tuple(names[:4])
    assert (chosen.search, chosen.gap, chosen.num_groups) == ("branch_and_bound", 0, 1_028_790)
    assert "proved the least total the least of 1,028,790 groups." in chosen.why()
    assert [sum(name in names[:4] for name in group.members) for group in chosen.runners_up] == [3, 3, 3]
