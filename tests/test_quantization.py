"""8- and 4-bit bases, through bitsandbytes: scored, trained on, decoded and evaluated as any other."""

import sys
from pathlib import Path

import pytest
import torch

from kshot.bank import Bank
from kshot.config import TaskConfig, TrainingConfig
from kshot.errors import ConfigError, MissingExtraError
from kshot.evaluation import evaluate
from kshot.examples import Example
from kshot.experts import attached, score_experts
from kshot.language_model import LanguageModel
from kshot.pipeline.model_card import mixture_card
from kshot.quantization import quantization_settings
from kshot.training import fit

from .experts.banks import bank_of

SHOTS = [Example("say cat", "the cat", id="a"), Example("count", "one two three", rationale="start", id="b")]
LARGEST_ERROR = {"8bit": 0.1, "4bit": 0.5}  # of a mean NLL of 4 to 8 nats, of a tiny model of random weights


@pytest.fixture
def bank(lora_folder) -> Bank:
    return bank_of(lora_folder("first", seed=1), lora_folder("second", seed=2, r=2))


@pytest.fixture(params=["8bit", "4bit"])
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'kshot[quantised]'")
    return request.param


@pytest.fixture
def quantised(kind: str, tiny_model_folder: Path) -> LanguageModel:
    return LanguageModel.load(str(tiny_model_folder), quantization=kind, device="cpu")


def _nll(lm: LanguageModel) -> list[float]:
    rows = [lm.template.encode_example(shot, "instruction", rationale=True) for shot in SHOTS]
    return [float(values.mean()) for values in lm.token_nll(rows)]


def test_settings_of_a_base_that_is_not_quantised() -> None:
    assert quantization_settings("none", torch.float32) == {}


def test_an_unknown_quantisation(tiny_model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected quantization none, 8bit, 4bit, got '3bit'"):
        LanguageModel.load(str(tiny_model_folder), quantization="3bit")


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_without_bitsandbytes(kind: str, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    message = rf"quantization: {kind} needs bitsandbytes: pip install 'kshot\[quantised\]'"
    with pytest.raises(MissingExtraError, match=message):
        LanguageModel.load(str(tiny_model_folder), quantization=kind)


def test_weights_are_quantised_and_likelihoods_near(kind: str, quantised, tiny_lm) -> None:
    layer = quantised.model.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == {"8bit": torch.int8, "4bit": torch.uint8}[kind]
    assert layer.weight.numel() == 48 * 32 // {"8bit": 1, "4bit": 2}[kind]
    found, exact = _nll(quantised), _nll(tiny_lm)
    assert found != exact
    assert found == pytest.approx(exact, abs=LARGEST_ERROR[kind])


def test_scores_against_evaluation_of_each_adapter_alone(quantised, bank) -> None:
    scores = score_experts(quantised, bank, SHOTS, max_new_tokens=4)
    assert scores.failures == {}
    for score, adapter in zip(scores, bank, strict=True):
        with attached(quantised, {adapter.name: adapter.load()}, gates=[1.0]):
            assert score.shot_nll == pytest.approx(_nll(quantised), rel=0.02)
            alone = evaluate(quantised, SHOTS, max_new_tokens=4)
        assert len(alone.predictions) == len(score.shot_answer)
    assert scores[0].shot_nll != scores[1].shot_nll


def test_training_after_scoring_and_decoding(quantised, bank) -> None:
    before = _nll(quantised)
    score_experts(quantised, bank, SHOTS, max_new_tokens=2)
    rows = [quantised.template.encode_example(shot, "instruction") for shot in SHOTS]
    settings = TrainingConfig(
        learning_rate=0.02, num_train_epochs=6, per_device_train_batch_size=2, gradient_accumulation_steps=1
    )
    with attached(quantised, {adapter.name: adapter.load() for adapter in bank}, top_k=1):
        result = fit(quantised, rows, settings)
        assert quantised.generate(["say cat"], max_new_tokens=4)
    assert result.losses[-1] < 0.9 * result.losses[0]
    assert _nll(quantised) == before  # the base is as it was


def test_the_card_says_what_the_base_was_trained_under(bank) -> None:
    def card(kind: str) -> str:
        task = {"name": "t", "base_model": "me/base", "shots": "s", "bank": ["b"], "data": {"budget": 0}}
        return mixture_card(TaskConfig.model_validate(task | {"quantization": kind}), ["first"], bank)

    assert "BitsAndBytesConfig" not in card("none")
    assert 'from_pretrained("path of me/base")' in card("none")
    assert "in 8 bits while it was tuned" in card("8bit")
    assert "BitsAndBytesConfig(load_in_8bit=True)" in card("8bit")
    assert 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True' in card("4bit")
