"""The robust method: what fools the others, near-ties, folds, and search beyond enumeration."""

import json
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.errors import ConfigError
from kshot.experts.selection import ExpertSelection, select_experts
from kshot.experts.shot_losses import shot_losses
from kshot.experts.similarity import Similarity

from .scores import Score, by_shot, similarity_of


def _select(scores: list[Score], similarity: Similarity, **more: Any) -> ExpertSelection:
    return select_experts(
        scores, similarity, **{"num_experts": 2, "num_candidates": 6, "method": "robust"} | more
    )


def _bank(seed: int, size: int = 6, shots: int = 10) -> tuple[list[Score], Similarity]:
    draw = np.random.default_rng(seed)
    names = [f"m{place:03d}" for place in range(size)]
    rows = (
        draw.normal(size=(size, 1)) + draw.normal(size=(1, shots)) + 0.5 * draw.normal(size=(size, shots)) + 4
    )
    cosines = np.triu(draw.uniform(-0.2, 0.9, (size, size)), k=1)
    return [by_shot(name, row) for name, row in zip(names, rows, strict=True)], Similarity(
        tuple(names), cosines + cosines.T + np.eye(size)
    )


# Two that do alike, one that is good where they are bad, and one that is bad.
HALVES = [
    by_shot("a", [1.0, 1.1, 1.0, 1.1, 2.0, 2.1, 2.0, 2.1]),
    by_shot("copy", [1.02, 1.09, 0.99, 1.11, 2.02, 2.08, 2.02, 2.08]),
    by_shot("other", [2.4, 2.5, 2.5, 2.4, 1.2, 1.1, 1.2, 1.1]),
    by_shot("bad", [3.0, 3.1, 3.0, 3.2, 3.1, 3.0, 3.1, 3.0]),
]
LETTERS = "acob"  # their initials, for similarities of pairs


def _halves(pairs: dict[str, float]) -> ExpertSelection:
    lettered = similarity_of(LETTERS, pairs)
    return _select(HALVES, Similarity(tuple(score.name for score in HALVES), lettered.matrix))


def test_a_group_is_good_and_different_on_the_shots() -> None:
    chosen = _halves({})
    assert chosen.experts == ("a", "other")
    assert [one.name for one in chosen.ranking] == ["a", "copy", "other", "bad"]
    assert chosen.ranking[0].near_tie
    assert "As single experts a and copy are near-ties." in chosen.why()


def test_of_near_ties_the_least_alike_wins() -> None:
    chosen = _halves({"ac": 0.9, "ao": 0.6, "co": 0.1})
    assert chosen.experts == ("copy", "other")
    assert [group.members for group in chosen.groups if group.near_tie] == [
        ("copy", "other"),
        ("a", "other"),
        ("a", "copy"),
    ]
    assert chosen.num_near_ties == 3
    assert chosen.groups[1].total < chosen.groups[0].total
    why = chosen.why()
    assert (
        "3 groups are within one standard error of the best, and of these the winner is the least alike"
        in why
    )
    assert "the shots cannot tell the two apart, and the smaller similarity decided" in why


def test_one_bad_shot_does_not_lose_the_best_adapter() -> None:
    draw = np.random.default_rng(0)
    rows = {"best": 1.0, "fair": 2.0, "poor": 3.0, "worst": 4.0}
    scores = [by_shot(name, value + 0.1 * draw.normal(size=10)) for name, value in rows.items()]
    spoilt = [*scores[0].shot_nll[:9], 14.0]
    scores[0] = by_shot("best", spoilt)
    similarity = similarity_of(list(rows))
    assert _select(scores, similarity).best_single == "best"
    by_the_paper = _select(scores, similarity, method="paper").ranking
    assert by_the_paper[0].name != "best"  # exp(14) / 10 outweighs all else


def test_the_format_of_answers_does_not_decide_where_there_are_choices() -> None:
    draw = np.random.default_rng(0)
    nll = {"knows": 6.0, "format": 1.0, "chatty": 2.0, "neither": 7.0}
    margin = {"knows": 1.5, "format": -0.3, "chatty": 0.0, "neither": -0.4}
    scores = [
        by_shot(name, nll[name] + 0.1 * draw.normal(size=8), margin=margin[name] + 0.2 * draw.normal(size=8))
        for name in nll
    ]
    chosen = _select(scores, similarity_of(list(nll)))
    assert chosen.best_single == "knows"
    assert chosen.to_json()["measures"] == {"margin": 1.0, "accuracy": 0.0}
    assert _select(scores, similarity_of(list(nll)), method="paper").best_single == "format"


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(4, 6))
@settings(max_examples=30, deadline=None)
def test_against_brute_force(seed: int, N: int, C: int) -> None:
    scores, similarity = _bank(seed)
    chosen = _select(scores, similarity, num_experts=N, num_candidates=C)
    losses = shot_losses(scores)
    rows = {score.name: losses.by_shot[place] for place, score in enumerate(scores)}
    candidates = sorted(rows, key=lambda name: rows[name].mean())[:C]
    assert [one.name for one in chosen.candidates] == candidates
    by_group = {
        group: (np.mean([rows[one] for one in group], axis=0) + np.min([rows[one] for one in group], axis=0))
        / 2
        for group in combinations(candidates, N)
    }
    best = min(by_group.values(), key=np.mean)
    behind = {group: loss - best for group, loss in by_group.items()}
    near = [
        group
        for group, difference in behind.items()
        if difference.mean() <= difference.std(ddof=1) / math.sqrt(10) + 1e-12
    ]
    assert chosen.num_near_ties == len(near)
    want = min(near, key=lambda group: (round(similarity.mean_pairwise(group), 6), by_group[group].mean()))
    assert chosen.experts == want
    for group in chosen.groups:
        assert group.total == pytest.approx(by_group[group.members].mean())
        assert group.near_tie == (group.members in near)
        assert group.total == pytest.approx((group.quality + group.best_of) / 2)


@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_invariant_order_of_scores_and_of_similarity(seed: int, random: Any) -> None:
    scores, similarity = _bank(seed)
    shuffled, names = random.sample(scores, len(scores)), random.sample(similarity.names, len(scores))
    chosen = _select(scores, similarity)
    again = _select(shuffled, Similarity(tuple(names), similarity.among(names)))
    assert again.groups == chosen.groups
    assert again.folds == chosen.folds
    assert again.why() == chosen.why()


def test_folds_tell_a_choice_that_stands_from_one_that_does_not() -> None:
    steady, names = [], ["a", "b", "c", "d"]
    for place, name in enumerate(names):
        steady.append(by_shot(name, [place + 0.01 * ((shot * 7 + place) % 5) for shot in range(20)]))
    chosen = _select(steady, similarity_of(names))
    assert chosen.folds is not None
    assert (chosen.folds.num_folds, chosen.folds.num_same) == (10, 10)
    assert chosen.folds.total == pytest.approx(chosen.groups[0].total)
    draw = np.random.default_rng(1)
    noise = [[by_shot(name, draw.normal(size=6)) for name in names] for _ in range(20)]
    shaky = [_select(one, similarity_of(names)) for one in noise]
    folds = [one.folds for one in shaky if one.folds is not None]
    assert len(folds) == 20
    assert np.mean([one.num_same for one in folds]) < 5.5  # of 6
    flattered = [fold.total - one.groups[0].total for fold, one in zip(folds, shaky, strict=True)]
    assert np.mean(flattered) > 0.1
    assert f"won in {folds[0].num_same} of 6 rounds" in shaky[0].why()
    assert _select([by_shot(one, draw.normal(size=2)) for one in names], similarity_of(names)).folds is None


def test_json_is_strict_and_says_what_was_weighed() -> None:
    scores, similarity = _bank(0)
    found = json.loads(json.dumps(_select(scores, similarity).to_json(), allow_nan=False))
    assert found["method"] == "robust"
    assert sum(found["measures"].values()) == pytest.approx(1)
    assert set(found["folds"]) == {"num_folds", "num_same", "total"}
    assert {"loss", "stderr", "near_tie"} <= set(found["ranking"][0])
    assert found["groups"][0]["near_tie"] is True
    assert found["num_near_ties"] >= 1


def test_a_bank_of_hundreds_is_searched_by_branch_and_bound() -> None:
    scores, similarity = _bank(0, size=200, shots=8)
    chosen = _select(scores, similarity, num_experts=4, num_candidates=120)
    assert chosen.num_groups == math.comb(120, 4)
    assert (chosen.search, chosen.gap) == ("branch_and_bound", 0)
    near = [group for group in chosen.groups if group.near_tie]
    assert chosen.groups[0].similarity == min(group.similarity for group in near)
    assert f"proved the least total the least of {math.comb(120, 4):,} groups." in chosen.why()


def test_refuses_a_single_shot() -> None:
    with pytest.raises(ConfigError, match="method robust expected at least 2 shots, got 1"):
        _select([by_shot("a", [1.0]), by_shot("b", [2.0])], similarity_of(["a", "b"]))
