"""Scores of a bank: numbers by hand, and a sequence that knows its failures."""

import math

import pytest

from kshot.experts.expert_score import Scores, ShotResult, summarise


def _result(nll: float, answer_first: float, correct: bool, margin: float | None = None) -> ShotResult:
    return ShotResult(nll, answer_first, nll / 2, 7, correct, "yes", margin, 0.5)


def test_against_the_formulas_by_hand() -> None:
    score = summarise("a", [_result(1.0, 2.0, True), _result(2.0, 1.0, False), _result(6.0, 3.0, True)], 2)
    assert score.accuracy == pytest.approx(2 / 3)
    assert score.reasoning_ppl == pytest.approx((math.e + math.e**2 + math.e**6) / 3)
    assert score.answer_first_ppl == pytest.approx((math.e**2 + math.e + math.e**3) / 3)
    assert (score.mean_nll, score.median_nll) == (pytest.approx(3.0), 2.0)
    assert (score.n, score.num_rationales, score.num_tokens, score.seconds) == (3, 2, 21, 1.5)
    assert score.shot_margin is None
    assert score.shot_answer_nll == (0.5, 1.0, 3.0)


def test_a_huge_nll_gives_a_perplexity_that_json_can_hold() -> None:
    assert math.isfinite(summarise("a", [_result(5000.0, 1.0, False)], 0).reasoning_ppl)


def test_margins_are_there_where_every_shot_has_one() -> None:
    assert summarise("a", [_result(1, 1, True, 0.25)], 0).shot_margin == (0.25,)


def test_scores_are_a_sequence_and_name_failures() -> None:
    one, other = (summarise(name, [_result(1, 1, True)], 0) for name in ("a", "b"))
    scores = Scores((one, other), {"c": "torn"})
    assert list(scores) == [one, other]
    assert (len(scores), scores[1], scores[:1]) == (2, other, (one,))
    assert scores.failures == {"c": "torn"}
