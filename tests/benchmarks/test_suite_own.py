"""What our own arms take from their setting."""

from dataclasses import replace

import pytest
from suite.arm import Setting
from suite.arms import ARMS
from suite.own import start
from suite.own.choice import best_single
from suite.own.mixture import build, num_parameters
from suite.own.single import build_best, build_oracle, build_random_tuned
from suite.own.start import build_few_shot
from suite.own_settings import OWN, MixtureArm
from suite.shared_work import SharedWork
from suite_toy import CHOSEN, WRITTEN, toy_cell

from kshot.experts import Scores
from kshot.language_model import LanguageModel
from kshot.prompts import prompt_of, target_of


@pytest.fixture
def setting(toy: SharedWork) -> Setting:
    return toy.setting(toy_cell(CHOSEN, "any", ARMS["base"]))


def test_against_the_chat_of_shots_and_question(setting: Setting) -> None:
    plain, lm = setting.lm.template, setting.lm
    built = build_few_shot(setting)
    turns = []
    for shot in setting.shots:
        turns.append({"role": "user", "content": prompt_of(shot, "cloze")})
        turns.append({"role": "assistant", "content": target_of(shot, "cloze")})
    asked = [*turns, {"role": "user", "content": "what is number 50"}]
    assert built.notes == {"num_shots": 4}
    assert lm.template.encode_prompt("what is number 50") == plain.encode_messages(asked)
    assert lm.template.end_of_turn == plain.end_of_turn
    encoded = lm.template.encode("what is number 50", "nine")
    assert encoded.target_length == plain.encode("what is number 50", "nine").target_length


def test_invariant_shots_that_do_not_fit_are_left_out(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = len(setting.lm.template.encode_prompt(prompt_of(setting.shots[0], "cloze")))
    monkeypatch.setattr(start, "PROMPT_TOKENS", 2 * one + 20)
    built = build_few_shot(setting)
    assert 1 <= built.notes["num_shots"] < 4
    assert len(setting.lm.template.encode_prompt("what")) <= 2 * one + 40


def test_invariant_the_oracle_takes_the_most_accurate_and_of_equals_the_likeliest(setting: Setting) -> None:
    worst_to_best = {
        "aa": (0.5, 1.0),
        "bb": (0.75, 9.0),
        "cc": (0.75, 2.0),
        "dd": (0.0, 0.1),
        "ee": (0.5, 0.1),
    }
    scores = tuple(
        replace(one, accuracy=worst_to_best[one.name][0], mean_nll=worst_to_best[one.name][1])
        for one in setting.scores
    )
    built = build_oracle(replace(setting, scores=Scores(scores, {})))
    assert built.notes["experts"] == ["cc"]
    assert built.notes["bank"]["bb"] == {"accuracy": 0.75, "nll": 9.0}


def test_invariant_the_best_single_expert_has_the_best_margins(setting: Setting) -> None:
    def with_margin(name: str) -> Scores:
        scores = (
            replace(
                one,
                shot_margin=(3.0 if one.name == name else -1.0,) * 4,
                shot_correct=(one.name == name,) * 4,
            )
            for one in setting.scores
        )
        return Scores(tuple(scores), {})

    for name in ("aa", "dd"):
        assert best_single(with_margin(name)) == name
        built = build_best(replace(setting, scores=with_margin(name)))
        assert built.notes["experts"] == [name]
        setting.lm.model = built.model.unload()


def test_invariant_random_experts_change_with_the_seed(toy: SharedWork) -> None:
    cells = [toy_cell(WRITTEN, "random_tuned", ARMS["random_tuned"], seed) for seed in range(3)]
    chosen = [build_random_tuned(toy.setting(cell)).notes["experts"] for cell in cells]
    assert len({names[0] for names in chosen}) > 1


def test_invariant_a_router_alone_leaves_the_experts(setting: Setting) -> None:
    settings = {"trains": "router", "num_experts": 3}
    built = build(setting, settings)
    whole = num_parameters(
        replace(setting, lm=LanguageModel.load(setting.lm.name)), MixtureArm.model_validate(settings)
    )
    assert 0 < built.trained_parameters < whole
    routers = {name for name, one in built.model.named_parameters() if one.requires_grad}
    assert routers
    assert all("router" in name for name in routers)


def test_invariant_notes_tell_how_much_each_layer_uses_each_expert(setting: Setting) -> None:
    built = build(setting, OWN)
    use = built.notes["use_by_layer"]
    assert len(use) == setting.lm.model.config.num_hidden_layers
    for gates in use.values():
        assert gates.keys() == set(built.notes["experts"])
        assert sum(gates.values()) == pytest.approx(1, abs=1e-3)
