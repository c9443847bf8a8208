"""LoRAHub: weights combine weight changes, and the search ends no worse than it starts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from suite.arm import Setting, encode
from suite.peers import lorahub
from suite.recipe import TaskRecipe

from kshot.bank import Bank
from kshot.config import TrainingConfig
from kshot.errors import MissingExtraError
from kshot.examples import read_examples
from kshot.experts import Scores, score_experts
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture

from ..tiny_task import tiny_rows, write_rows
from .peer_adapters import delta, logits, with_changes, write_adapters

needs_nevergrad = pytest.mark.skipif(
    lorahub.nevergrad is None, reason="nevergrad is not installed: pip install 'kshot[bench]'"
)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Bank:
    return Bank.open(write_adapters(tmp_path_factory.mktemp("bank"), tiny_model_folder))


@pytest.fixture
def setting(tiny_lm: LanguageModel, bank: Bank, tmp_path: Path) -> Setting:
    write_rows(tmp_path / "shots.jsonl", tiny_rows(4, rationale=False))
    shots = read_examples(tmp_path / "shots.jsonl")
    return Setting(
        lm=tiny_lm,
        bank=bank,
        scores=_scores(tiny_lm, bank, shots),
        shots=shots,
        rows=[],
        recipe=TaskRecipe(name="tiny", title="tiny", kind="transfer", scorer="exact_match"),
        training=TrainingConfig(),
        seed=0,
        work=tmp_path,
    )


def _scores(lm: LanguageModel, bank: Bank, shots: list) -> Scores:
    return score_experts(lm, bank, shots, max_new_tokens=2)


def changes_of(bank: Bank, weights: list[float]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for adapter, weight in zip(bank, weights, strict=True):
        for module, factors in adapter.load().factors.items():
            total[module] = total.get(module, 0) + weight * delta(factors)
    return total


@pytest.mark.parametrize(
    "weights",
    [[0.0, 0, 1, 0, 0], [0.0, 1, 0, 0, 0], [0.0, 0, 0, 0, 0], [0.5, -1.5, 0.3, 0, 1.2]],
    ids=["one", "another", "none", "all"],
)
def test_weights_combine_weight_changes(tiny_lm: LanguageModel, bank: Bank, weights: list[float]) -> None:
    want = logits(with_changes(tiny_lm.model, changes_of(bank, weights)))
    experts = {adapter.name: adapter.load() for adapter in bank}
    model = build_mixture(tiny_lm.model, experts, fixed_gates=[0.7] * len(experts))
    lorahub.set_weights(model, weights)
    torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=0)


@needs_nevergrad
@pytest.mark.parametrize("seed", [0, 1])
def test_search_ends_no_worse_than_the_base(setting: Setting, bank: Bank, seed: int) -> None:
    rows = encode(setting, setting.shots)
    base_loss = np.concatenate(setting.lm.token_nll(rows)).mean()
    experts = {adapter.name: adapter.load() for adapter in bank}
    setting.lm.model = build_mixture(setting.lm.model, experts, fixed_gates=[1.0] * len(experts))
    found = lorahub.search(setting.lm, rows, seed=seed)
    assert found.start_loss == pytest.approx(base_loss, abs=1e-5)
    assert found.loss < found.start_loss
    assert all(abs(weight) <= lorahub.BOUND for weight in found.weights)
    assert np.concatenate(setting.lm.token_nll(rows)).mean() == pytest.approx(found.loss, abs=1e-6)


@needs_nevergrad
def test_a_penalty_that_nothing_is_worth_leaves_the_base(
    setting: Setting, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lorahub, "PENALTY", 1e6)
    setting.lm.model = build_mixture(setting.lm.model, {"e0": bank["e0"].load()}, fixed_gates=[1.0])
    found = lorahub.search(setting.lm, encode(setting, setting.shots), steps=5)
    assert found.weights == (0.0,)
    assert found.loss == found.start_loss


@needs_nevergrad
def test_arm(setting: Setting, tiny_model_folder: Path) -> None:
    built = lorahub.build(setting)
    assert built.trained_parameters == len(built.notes["weights"]) == 5
    assert built.notes["loss"] <= built.notes["start_loss"]
    base = LanguageModel.load(str(tiny_model_folder), device="cpu").model
    weights = [built.notes["weights"][adapter.name] for adapter in setting.bank]
    want = logits(with_changes(base, changes_of(setting.bank, weights)))
    torch.testing.assert_close(logits(built.model), want, atol=1e-2, rtol=0)  # notes have four digits
    assert len(setting.lm.generate(["say one"], max_new_tokens=3)) == 1


def test_without_nevergrad(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lorahub, "nevergrad", None)
    with pytest.raises(MissingExtraError, match=r"kshot\[bench\]"):
        lorahub.build(setting)
