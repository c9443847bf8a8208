"""Search for a group: against all groups on random instances, and bounds that hold."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.experts.group_search import Objective, all_groups, find_groups
from kshot.experts.objectives import PairObjective, ShotObjective


def _pairs(draw: np.random.Generator, size: int) -> PairObjective:
    pair_CC = np.triu(draw.uniform(-1, 1, (size, size)).round(2), k=1)
    return PairObjective(draw.uniform(0, 1, size).round(2), pair_CC + pair_CC.T)


def _shots(draw: np.random.Generator, size: int) -> ShotObjective:
    return ShotObjective(draw.normal(size=(size, 1)) + draw.normal(size=(size, 5)).round(1))


KINDS = {"pairs": _pairs, "shots": _shots}


@st.composite
def searches(draw: st.DrawFn) -> tuple[Objective, int]:
    """An objective over up to 12 candidates and a size of group."""
    size = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    return KINDS[draw(st.sampled_from(list(KINDS)))](rng, size), draw(st.integers(1, size))


def _worth(objective: Objective, members: tuple[int, ...]) -> float:
    return float(objective.totals(np.array([members]))[0])


def _brute_force(objective: Objective, N: int) -> dict[tuple[int, ...], float]:
    return {one: _worth(objective, one) for one in combinations(range(objective.num_candidates), N)}


@given(searches())
@settings(max_examples=150, deadline=None)
def test_against_brute_force(search: tuple[Objective, int]) -> None:
    objective, N = search
    want = _brute_force(objective, N)
    exact = find_groups(objective, N)
    assert (exact.search, exact.gap) == ("exact", 0)
    assert [tuple(one) for one in exact.members.tolist()] == list(want)
    np.testing.assert_allclose(exact.totals, list(want.values()), atol=1e-12)
    proven = find_groups(objective, N, max_groups=0)
    assert (proven.search, proven.gap) == ("branch_and_bound", 0)
    assert proven.totals.min() == pytest.approx(min(want.values()), abs=1e-11)
    assert proven.totals[0] == proven.totals.min()


@given(searches(), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_the_gap_of_an_unfinished_search_holds(search: tuple[Objective, int], max_branches: int) -> None:
    objective, N = search
    least = min(_brute_force(objective, N).values())
    found = find_groups(objective, N, max_groups=0, max_branches=max_branches)
    assert found.gap >= 0
    assert found.search == ("greedy_exchange" if found.gap > 0 else "branch_and_bound")
    assert least - 1e-9 <= found.totals.min() <= least + found.gap + 1e-9


@given(searches(), st.data())
@settings(max_examples=150, deadline=None)
def test_no_group_undercuts_a_bound(search: tuple[Objective, int], data: st.DataObject) -> None:
    objective, N = search
    size = objective.num_candidates
    chosen = tuple(sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=max(0, N - 2)))))
    if len(chosen) > N - 2:
        return
    first = chosen[-1] + 1 if chosen else 0
    bounds = objective.bounds(chosen, N)
    assert len(bounds) == size - first
    for place, bound in enumerate(bounds, start=first):
        later = combinations(range(place + 1, size), N - len(chosen) - 1)
        worths = [_worth(objective, (*chosen, place, *rest)) for rest in later]
        assert bound <= min(worths, default=math.inf) + 1e-9
        assert worths or bound == math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_among_a_hundred_candidates_a_proof_takes_few_branches(kind: str) -> None:
    objective = KINDS[kind](np.random.default_rng(0), 100)
    found = find_groups(objective, 4)  # of 3,921,225 groups
    assert (found.search, found.gap) == ("branch_and_bound", 0)
    assert len(found.totals) == 1 + 4 * 96
    differing = [len({*found.members[0]} - {*one}) for one in found.members]
    assert differing == [0] + [1] * 4 * 96
    assert find_groups(objective, 4, max_branches=0).totals.min() >= found.totals.min()


def test_golden_pair_totals() -> None:
    pair_CC = np.array([[9.0, 1, 2], [1, 9, 4], [2, 4, 9]])
    objective = PairObjective(np.array([1.0, 2, 3]), pair_CC)
    np.testing.assert_allclose(objective.totals(np.array([[0, 1], [0, 2], [1, 2]])), [2.5, 4, 6.5])
    np.testing.assert_allclose(objective.totals(np.array([[0, 1, 2]])), [2 + 7 / 3])
    np.testing.assert_allclose(objective.totals(np.array([[0], [1], [2]])), [1, 2, 3])


def test_golden_shot_totals() -> None:
    objective = ShotObjective(np.array([[1.0, 5], [3, 1], [4, 4]]))
    # means 3, 2 and 4; of the first two: blind 2.5, the best for each shot 1
    np.testing.assert_allclose(objective.totals(np.array([[0, 1], [0, 2], [1, 2]])), [1.75, 3, 2.5])
    np.testing.assert_allclose(objective.by_shot(np.array([[0, 1]])), [[1.5, 2]])
    assert objective.best_of([0, 2]) == 2.5


def test_all_groups_in_order() -> None:
    assert all_groups(4, 2).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert all_groups(3, 3).tolist() == [[0, 1, 2]]
