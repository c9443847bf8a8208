"""Every peer as an arm: chosen experts, rows it is trained on, a model that can be evaluated."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from suite.arm import Built, Setting, encode
from suite.peers import arrow, merging, smear, uniform, xlora
from suite.peers.group import chosen_experts, num_weights, random_experts
from suite.recipe import TaskRecipe

from kshot.bank import Bank
from kshot.config import TrainingConfig
from kshot.examples import Example, read_examples
from kshot.experts import Scores, score_experts
from kshot.language_model import LanguageModel

from ..tiny_task import tiny_rows, write_rows
from .peer_adapters import logits, write_adapters

BUILDERS = {
    "uniform": uniform.build,
    "ties": merging.build_ties,
    "dare": merging.build_dare,
    "arrow": arrow.build,
    "arrow_tuned": arrow.build_tuned,
    "xlora": xlora.build,
    "smear": smear.build,
}
TUNED = ("arrow_tuned", "xlora", "smear")
RECIPE = TaskRecipe(name="tiny", title="tiny", kind="transfer", scorer="exact_match")
TRAINING = TrainingConfig(
    learning_rate=1e-2, num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=1
)


def read(folder: Path, count: int, start: int) -> list[Example]:
    write_rows(folder / "rows.jsonl", tiny_rows(count, start, rationale=False))
    return read_examples(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Bank:
    return Bank.open(write_adapters(tmp_path_factory.mktemp("bank"), tiny_model_folder))


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, bank: Bank) -> Scores:
    lm = LanguageModel.load(str(tiny_model_folder), device="cpu")
    return score_experts(lm, bank, read(tmp_path_factory.mktemp("rows"), 4, 0), max_new_tokens=4)


@pytest.fixture
def setting(tiny_lm: LanguageModel, bank: Bank, scores: Scores, tmp_path: Path) -> Setting:
    return Setting(
        lm=tiny_lm,
        bank=bank,
        scores=scores,
        shots=read(tmp_path, 4, 0),
        rows=read(tmp_path, 4, 100),
        recipe=RECIPE,
        training=TRAINING,
        seed=0,
        work=tmp_path / "work",
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_built_models_answer(setting: Setting, name: str) -> None:
    base, chosen = logits(setting.lm.model), chosen_experts(setting)
    built: Built = BUILDERS[name](setting)
    assert built.notes["experts"] == list(chosen)
    found = logits(built.model)
    assert torch.isfinite(found).all()
    assert not torch.allclose(found, base, atol=1e-4)
    setting.lm.model = built.model
    rows = encode(setting, setting.shots)
    assert all(math.isfinite(nll.sum()) for nll in setting.lm.token_nll(rows))
    requests = [shot.request for shot in setting.shots]
    together = setting.lm.generate(requests, max_new_tokens=3)
    assert together == [setting.lm.generate([one], max_new_tokens=3)[0] for one in requests]
    assert (built.trained_parameters > 0) == (name in TUNED)


def test_trained_parameters(setting: Setting, tiny_model_folder: Path) -> None:
    experts = chosen_experts(setting)
    own = num_weights(experts.values())

    def built(build: Callable[[Setting], Built]) -> Built:
        fresh = LanguageModel.load(str(tiny_model_folder), device="cpu")
        return build(replace(setting, lm=fresh))

    assert built(arrow.build_tuned).trained_parameters == own, "padding is not trained"
    assert built(xlora.build).trained_parameters == (32 + 1) * len(experts)
    inputs = {
        module: factors.A_rI.shape[1] for e in experts.values() for module, factors in e.factors.items()
    }
    assert built(smear.build).trained_parameters == own + len(experts) * sum(inputs.values())


def test_tuned_arrow_leaves_padding_at_zero(setting: Setting) -> None:
    built = arrow.build_tuned(setting)
    experts = chosen_experts(setting)
    for number, expert in enumerate(experts.values()):
        for module, factors in expert.factors.items():
            layer = built.model.get_base_model().get_submodule(module)
            A_rI, B_Or = (getattr(layer, side)[f"task_{number}"].weight for side in ("lora_A", "lora_B"))
            assert not A_rI[factors.r :].any()
            assert not B_Or[:, factors.r :].any()
            assert not torch.allclose(B_Or[:, : factors.r], factors.scaling * factors.B_Or.float())


@pytest.mark.parametrize("name", BUILDERS)
def test_half_precision_base(setting: Setting, tiny_model_folder: Path, name: str) -> None:
    half = LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="bfloat16")
    built = BUILDERS[name](replace(setting, lm=half))
    trained = {parameter.dtype for parameter in built.model.parameters() if parameter.requires_grad}
    assert trained <= {torch.float32}
    assert torch.isfinite(logits(built.model)).all()
    setting.lm.model = built.model
    assert len(setting.lm.generate(["say one"], max_new_tokens=3)) == 1


def test_group_is_that_of_the_published_selection(setting: Setting) -> None:
    assert len(chosen_experts(setting)) == 4
    assert set(random_experts(setting, 20)) == set(setting.bank.names)
    assert random_experts(setting, 2).keys() == random_experts(setting, 2).keys()
    drawn = {tuple(random_experts(replace(setting, seed=seed), 2)) for seed in range(8)}
    assert len(drawn) > 1
