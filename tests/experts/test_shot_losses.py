"""Losses shot by shot: by hand, against a reference, and what may not change them."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kshot.errors import AdapterError, ConfigError
from kshot.experts.shot_losses import HUBER, LARGEST_LOSS, ShotLosses, shot_losses

from .scores import by_shot


def _nll(rows: np.ndarray, shots: list[int] | None = None) -> ShotLosses:
    return shot_losses([by_shot(f"m{place}", row) for place, row in enumerate(rows)], shots)


def _random(seed: int, M: int = 7, K: int = 9) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return 3 + draw.normal(size=(M, 1)) + draw.normal(size=(1, K)) + 0.3 * draw.standard_t(2, size=(M, K))


def test_golden_by_hand() -> None:
    # shot 2 is harder for all; medians by shot 1 and 3: paired -1, 0 and 2; standard deviation sqrt(7/3)
    found = _nll(np.array([[0.0, 2.0], [1.0, 3.0], [3.0, 5.0]]))
    np.testing.assert_allclose(found.by_shot * math.sqrt(7 / 3), [[-1, -1], [0, 0], [2, 2]], atol=1e-12)
    np.testing.assert_allclose(found.mean * math.sqrt(7 / 3), [-1, 0, 2], atol=1e-12)
    assert [(one.name, one.weight) for one in found.measures] == [("answer", 1), ("accuracy", 0)]
    assert found.stderr(0) == found.stderr_between(0, 2) == 0


@pytest.mark.parametrize("seed", range(5))
def test_against_hubers_equation(seed: int) -> None:
    rows = _random(seed)
    found = _nll(rows)
    paired = rows - np.median(rows, axis=0)
    bound = HUBER * 1.4826 * np.median(np.abs(paired - np.median(paired, axis=1, keepdims=True)))
    scale = _scale(found, paired, bound)
    residual = np.clip(paired - found.mean[:, None] * scale, -bound, bound)
    np.testing.assert_allclose(residual.sum(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(found.by_shot * scale, found.mean[:, None] * scale + residual, atol=1e-6)


def _scale(found: ShotLosses, paired: np.ndarray, bound: float) -> float:
    """Nats in a standard deviation between adapters: by bisection of each Huber equation."""
    low, high = paired.min(axis=1), paired.max(axis=1)
    for _ in range(80):
        middle = (low + high) / 2
        above = np.clip(paired - middle[:, None], -bound, bound).sum(axis=1) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return float(np.median(low / found.mean))


@pytest.mark.parametrize("bad", [20.0, 1e3, float("inf")])
def test_one_bad_shot_hardly_counts(bad: float) -> None:
    rows = _random(1, M=6, K=8)
    rows[:, :] = np.arange(6)[:, None] + 0.1 * rows
    before = _nll(rows).mean
    rows[0, 3] = bad
    after = _nll(rows).mean
    assert list(after.argsort()) == list(before.argsort())
    assert abs(after[0] - before[0]) < 0.1
    assert rows[0].mean() > rows[1].mean()  # by the mean NLL the best adapter was lost


@given(st.integers(0, 1_000), st.floats(-5, 5), st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_invariant_hard_shots_and_units(seed: int, harder: float, unit: float) -> None:
    rows = _random(seed)
    before = _nll(rows)
    changed = unit * (rows + harder * np.linspace(-1, 1, rows.shape[1]))
    assume(np.abs(changed).max() <= LARGEST_LOSS)  # a larger loss is cut, whatever the unit
    after = _nll(changed)
    np.testing.assert_allclose(after.by_shot, before.by_shot, atol=1e-6)
    np.testing.assert_allclose(after.replicates, before.replicates, atol=1e-6)


def test_a_lucky_answer_has_no_weight() -> None:
    rows = _random(0, M=16, K=8)
    scores = [by_shot(f"m{place}", row) for place, row in enumerate(rows)]
    scores[5] = by_shot("m5", rows[5], [True] + [False] * 7)
    (nll, accuracy) = shot_losses(scores).measures
    assert (nll.name, accuracy.name) == ("answer", "accuracy")
    assert accuracy.weight == pytest.approx(0, abs=1e-12)


def test_right_answers_count_where_they_tell_adapters_apart() -> None:
    flat = np.random.default_rng(0).normal(size=(6, 16))  # no adapter is better by its NLL
    scores = [
        by_shot(f"m{place}", row, [shot < 2 + 2 * place for shot in range(16)])
        for place, row in enumerate(flat)
    ]
    found = shot_losses(scores)
    nll, accuracy = found.measures
    assert accuracy.weight > 0.5 > nll.weight
    assert int(found.mean.argmin()) == 5


def test_a_margin_takes_the_place_of_the_nll() -> None:
    # `knows` answers in another format: every choice is unlikely, the right one least so
    draw = np.random.default_rng(0)
    nll = {"knows": 6.0, "format": 1.0, "neither": 3.0}
    margin = {"knows": 2.0, "format": -0.2, "neither": -0.5}
    scores = [
        by_shot(
            name,
            nll[name] + 0.1 * draw.normal(size=8),
            margin=margin[name] + 0.3 * draw.normal(size=8),
        )
        for name in nll
    ]
    found = shot_losses(scores)
    assert [one.name for one in found.measures] == ["margin", "accuracy"]
    assert int(found.mean.argmin()) == 0
    without = shot_losses([by_shot(one.name, one.shot_nll) for one in scores])
    assert int(without.mean.argmin()) == 1


def test_rationale_and_answer_count_alike_where_both_tell() -> None:
    draw = np.random.default_rng(0).normal(size=(2, 4, 8)) / 100
    words = np.array([0.0, 1.0, 2.0, 3.0])[:, None] + draw[0]  # m0 words rationales best
    answers = np.array([3.0, 0.0, 1.0, 2.0])[:, None] + draw[1]  # and answers worst
    scores = [by_shot(f"m{place}", words[place], answer=answers[place]) for place in range(4)]
    found = shot_losses(scores)
    assert [one.name for one in found.measures] == ["reasoning", "answer", "accuracy"]
    assert [one.weight for one in found.measures] == pytest.approx([0.5, 0.5, 0], abs=1e-3)
    assert int(found.mean.argmin()) == 1


def test_against_the_jackknife_of_plain_means() -> None:
    # normal losses far inside the bound: the standard error is the mean's
    rows = np.array([[0.0, 0.1, -0.1, 0.05], [1.0, 1.2, 0.9, 1.1], [2.0, 1.9, 2.1, 2.2]])
    scores = [by_shot(f"m{place}", np.zeros(4), row > 1) for place, row in enumerate(rows)]
    found = shot_losses(scores)
    wrong = 1.0 - (rows > 1)
    paired = wrong - np.median(wrong, axis=0)
    means = paired.mean(axis=1)
    spread = means.std(ddof=1)
    want = paired.std(axis=1, ddof=1) / 2 / spread
    assert [found.stderr(place) for place in range(3)] == pytest.approx(list(want))
    difference = (paired[1] - paired[2]).std(ddof=1) / 2 / spread
    assert found.stderr_between(1, 2) == pytest.approx(difference)


def test_shots_that_tell_nothing() -> None:
    found = _nll(np.ones((3, 4)))
    assert not found.by_shot.any()
    assert [one.weight for one in found.measures] == [0.5, 0.5]
    noisy = _nll(np.tile(np.random.default_rng(0).normal(size=9) / 3, (5, 1)) + 1e-15 * np.arange(5)[:, None])
    assert not noisy.by_shot.any()


def test_some_of_the_shots() -> None:
    rows = _random(3)
    some = [0, 2, 3, 7]
    np.testing.assert_allclose(_nll(rows, some).by_shot, _nll(rows[:, some]).by_shot)


def test_refuses_a_single_shot_and_results_that_lack_some() -> None:
    with pytest.raises(
        ConfigError, match="robust expected at least 2 shots, got 1: add shots, or use method paper"
    ):
        _nll(np.ones((3, 1)))
    good, bad = by_shot("a", [1.0, 2.0]), by_shot("b", [1.0, 2.0], margin=[1.0])
    with pytest.raises(
        ConfigError,
        match="adapter 'b': expected one result for each of 2 shots, got 2 and 2 and 2 and 1: score",
    ):
        shot_losses([good, bad])
    nan = by_shot("c", [1.0, 2.0], margin=[1.0, float("nan")])
    with pytest.raises(
        AdapterError, match="adapter 'c': expected results that are numbers, got NaN on a shot"
    ):
        shot_losses([good, nan])
