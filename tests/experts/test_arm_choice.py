"""The rule by which an arm is chosen: pure numbers in, a decision with its reason out."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pytest

from kshot.errors import ConfigError
from kshot.experts.arm_choice import ArmChoice, choose_arm
from kshot.experts.shot_losses import LARGEST_LOSS

TITLES = {
    "base": "base model",
    "single": "best expert",
    "uniform": "uniform mixture",
    "tuned": "tuned mixture",
}


def choose(**losses: Sequence[float]) -> ArmChoice:
    return choose_arm(losses, TITLES, preferred="tuned", safe="base", unit="nats a token")


def test_the_mixture_stays_where_it_is_best() -> None:
    choice = choose(base=[3, 2, 3, 2], single=[2, 2, 2, 1], tuned=[1, 1, 1, 1])
    assert choice.chosen == "tuned"
    assert (
        choice.reason == "no other arm has a lower loss than the tuned mixture on shots it was not trained on"
    )
    best = choice.arms[-1]
    assert (best.arm, best.loss, best.stderr) == ("tuned", 1, 0)
    assert (best.difference_to_best, best.difference_stderr) == (0, 0)


def test_against_differences_by_hand() -> None:
    base, tuned = np.array([3.0, 2.0, 4.0]), np.array([1.0, 1.5, 1.0])
    choice = choose(base=base, tuned=tuned)
    judged = choice.arms[0]
    assert judged.loss == pytest.approx(3.0)
    assert judged.stderr == pytest.approx(base.std(ddof=1) / math.sqrt(3))
    assert judged.difference_to_best == pytest.approx((base - tuned).mean())
    assert judged.difference_stderr == pytest.approx((base - tuned).std(ddof=1) / math.sqrt(3))


def test_never_worse_than_the_base_by_however_little() -> None:
    choice = choose(base=[1, 2, 3], uniform=[1, 2, 3.0001], tuned=[0, 2, 4.01])
    assert choice.chosen == "base"
    assert "the tuned mixture has a greater loss than the base model: by 0.00333" in choice.reason


def test_another_arm_must_be_better_by_more_than_one_standard_error() -> None:
    noisy = choose(base=[5, 5, 5, 5], single=[0, 2, 0, 1.9], tuned=[1, 1, 1, 1])
    assert noisy.chosen == "tuned"
    assert "by no more than one standard error: 0.025 ± 0.56 nats a token" in noisy.reason
    assert noisy.arms[-1].difference_to_best == pytest.approx(0.025)  # the best of all is told, not hidden
    steady = choose(base=[5, 5, 5, 5], single=[0.9, 0.8, 0.9, 0.8], tuned=[1, 1, 1, 1])
    assert steady.chosen == "single"
    assert "the tuned mixture has a greater loss than the best expert" in steady.reason


def test_a_steady_gain_is_taken_where_a_larger_one_is_too_noisy() -> None:
    choice = choose(base=[5] * 4, single=[0.9, 0.8, 0.9, 0.8], uniform=[-3, 4, -3, 4], tuned=[1, 1, 1, 1])
    assert choice.chosen == "single"


def test_from_the_base_too_an_arm_must_be_better_by_more_than_one_standard_error() -> None:
    assert choose(base=[1, 1, 1], single=[0, 1, 1.9], tuned=[2, 2, 2]).chosen == "base"
    assert choose(base=[1, 1, 1], single=[0.5, 0.5, 0.6], tuned=[2, 2, 2]).chosen == "single"


def test_ties_change_nothing() -> None:
    equal = choose(base=[1, 2], single=[1, 2], uniform=[1, 2], tuned=[1, 2])
    assert equal.chosen == "tuned"
    assert "no other arm has a lower loss" in equal.reason
    assert [one.difference_to_best for one in equal.arms] == [0] * 4
    twins = choose(base=[5, 5], single=[1, 1], uniform=[1, 1], tuned=[3, 3])
    assert twins.chosen == "single"  # the first of those that are best


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_what_is_no_number_is_as_bad_as_can_be(bad: float) -> None:
    choice = choose(base=[2, 3], single=[2, 4], tuned=[1, bad])
    assert choice.chosen == "base"
    assert choice.arms[-1].loss == (1 + LARGEST_LOSS) / 2
    json.loads(json.dumps([asdict(one) for one in choice.arms], allow_nan=False))
    broken = choose(base=[bad, bad], single=[bad, bad], tuned=[bad, bad])
    assert broken.chosen == "tuned"
    assert choose(base=[bad, bad], single=[1, 1], tuned=[bad, bad]).chosen == "single"


def test_one_shot_says_nothing() -> None:
    with pytest.raises(
        ConfigError, match=r"the same 2 shots or more, got 1: add shots, or set evaluation\.folds"
    ):
        choose(base=[1], tuned=[2])


def test_losses_that_are_missing() -> None:
    with pytest.raises(ConfigError, match="got 2 and 3"):
        choose(base=[1, 2], tuned=[1, 2, 3])
    with pytest.raises(ConfigError, match="expected losses of the arm tuned, got those of base"):
        choose(base=[1, 2])


def test_invariant_nothing_worse_than_the_base_is_chosen_and_the_order_of_shots_is_none() -> None:
    draw = np.random.default_rng(0)
    changed = 0
    for _ in range(300):
        scale = draw.uniform(0.1, 2)
        losses = {name: draw.normal(draw.normal(2, 0.5), scale, 8) for name in TITLES}
        choice = choose(**losses)
        mean = {one.arm: one.loss for one in choice.arms}
        assert mean[choice.chosen] <= mean["base"]
        changed += choice.chosen != "tuned"
        order = draw.permutation(8)
        assert choose(**{name: values[order] for name, values in losses.items()}).chosen == choice.chosen
        shifted = choose(**{name: values + 7 for name, values in losses.items()})
        assert shifted.chosen == choice.chosen
    assert 30 < changed < 270
