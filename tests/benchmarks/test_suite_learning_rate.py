"""The learning rate: folds of the shots alone, the least NLL, nothing measured twice."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from suite.arm import Built, Setting, training_rows
from suite.arms import ARMS
from suite.bank_scores import score_bank, scores_on
from suite.learning_rate import choose_rate, folds_of
from suite.shared_work import SharedWork
from suite_toy import CHOSEN, WRITTEN, toy_cell

from kshot.experts import ScoreStore


def test_invariant_trials_see_neither_test_rows_nor_held_out_shots(toy: SharedWork) -> None:
    cell = toy_cell(CHOSEN, "seen", ARMS["fresh"])
    setting, seen = toy.setting(cell), []

    def arm(given: Setting) -> Built:
        seen.append(given)
        return Built(given.lm.model, 0)

    choose_rate(arm, setting, toy.fresh_model, [0.1, 0.2], store=ScoreStore(), key="k", max_rows=4)
    test = {row.id for row in toy.test_of(cell)}
    everything = {shot.id for shot in setting.shots}
    held_out = [everything - {shot.id for shot in given.shots} for given in seen]
    assert [given.training.learning_rate for given in seen] == [0.1, 0.1, 0.2, 0.2]
    assert held_out[0] | held_out[1] == everything
    assert held_out[0] & held_out[1] == set()
    for given in seen:
        assert test.isdisjoint(row.id for row in [*given.shots, *given.rows])
        assert len(given.rows) == 4
        assert {score.n for score in given.scores} == {2}
        assert given.lm is not setting.lm


def test_invariant_the_least_held_out_nll_wins_and_is_not_measured_twice(
    toy: SharedWork, tmp_path: Path
) -> None:
    setting = toy.setting(toy_cell(WRITTEN, "scaled", ARMS["fresh"]))
    built = []

    def arm(given: Setting) -> Built:
        """Spoil the model the more, the further the rate is from 0.2."""
        rate = given.training.learning_rate
        built.append(rate)
        with torch.no_grad():
            given.lm.model.get_output_embeddings().weight.mul_(1 + 5 * abs(rate - 0.2))
        return Built(given.lm.model, 0)

    def choose() -> tuple[float, list[float]]:
        store = ScoreStore(tmp_path / "trials.jsonl")
        rates = [0.4, 0.1, 0.2]
        rate, trials = choose_rate(arm, setting, toy.fresh_model, rates, store=store, key="k", max_rows=6)
        return rate, [trial.rate for trial in trials]

    assert choose() == (0.2, [0.1, 0.2, 0.4])
    assert len(built) == 6
    assert choose() == (0.2, [0.1, 0.2, 0.4])
    assert len(built) == 6


def test_invariant_a_rate_that_diverges_never_wins(toy: SharedWork) -> None:
    setting = toy.setting(toy_cell(WRITTEN, "nan", ARMS["fresh"]))

    def arm(given: Setting) -> Built:
        if given.training.learning_rate > 0.1:
            with torch.no_grad():
                given.lm.model.get_output_embeddings().weight.fill_(math.nan)
        return Built(given.lm.model, 0)

    store = ScoreStore()
    rate, trials = choose_rate(arm, setting, toy.fresh_model, [0.1, 0.2], store=store, key="k", max_rows=6)
    assert rate == 0.1
    assert trials[1].nll == (math.inf, math.inf)
    assert trials[1].to_json() == {"rate": 0.2, "nll": [None, None]}


def test_invariant_of_one_rate_or_one_shot_nothing_is_tried(toy: SharedWork) -> None:
    setting = toy.setting(toy_cell(WRITTEN, "one", ARMS["fresh"]))

    def arm(given: Setting) -> Built:
        raise AssertionError

    options = {"store": ScoreStore(), "key": "k", "max_rows": 6}
    assert choose_rate(arm, setting, toy.fresh_model, [0.3], **options) == (0.3, [])
    alone = replace(setting, shots=setting.shots[:1])
    assert choose_rate(arm, alone, toy.fresh_model, [0.1, 0.2, 0.3, 0.4], **options) == (0.2, [])


def test_against_scoring_the_kept_shots_alone(toy: SharedWork) -> None:
    cell = toy_cell(CHOSEN, "scores", ARMS["base"])
    setting = toy.setting(cell)
    places = [1, 3]
    found = scores_on(setting.scores, places)
    kept = [setting.shots[place] for place in places]
    alone = score_bank(toy.model, setting.bank, kept, CHOSEN, ScoreStore())
    for one, other in zip(found, alone, strict=True):
        assert one.name == other.name
        assert one.accuracy == other.accuracy
        assert one.reasoning_ppl == pytest.approx(other.reasoning_ppl, rel=1e-4)
        assert one.mean_nll == pytest.approx(other.mean_nll, rel=1e-4)
        assert one.median_nll == pytest.approx(other.median_nll, rel=1e-4)
        assert one.shot_margin == pytest.approx(other.shot_margin, abs=1e-4)


@pytest.mark.parametrize("count", [2, 5, 16])
def test_invariant_folds_part_the_shots(count: int) -> None:
    folds = folds_of(count, seed=0)
    assert sorted(place for fold in folds for place in fold) == list(range(count))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


def test_invariant_shots_are_repeated_as_the_training_says(toy: SharedWork) -> None:
    setting = toy.setting(toy_cell(WRITTEN, "rows", ARMS["fresh"]))
    twice = replace(setting, training=setting.training.model_copy(update={"shot_repeats": 2}))
    assert len(training_rows(twice)) == len(training_rows(setting)) + len(setting.shots)
