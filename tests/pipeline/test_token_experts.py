"""Which experts served which token: the gates of a pass over prompt and answer, and the texts of tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.evaluation.runner import Prediction
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture, collect_routing
from kshot.pipeline.token_experts import MAX_ANSWERS, MAX_TOKENS, write_token_experts
from kshot.run_folder import TOKEN_EXPERTS

LoraFolder = Callable[..., Path]
ANSWER = "the answer is é 漢"


@pytest.fixture
def mixed(tiny_lm: LanguageModel, lora_folder: LoraFolder) -> LanguageModel:
    experts = {name: lora_folder(name, seed=seed) for seed, name in enumerate(["aa", "bb", "cc"])}
    tiny_lm.model = build_mixture(tiny_lm.model, experts, top_k=2, router_init_std=1.0).eval()
    return tiny_lm


def _prediction(text: str, place: int = 0) -> Prediction:
    return Prediction(f"test-{place}", "What is two?", text, "", True)


def _written(lm: LanguageModel, predictions: list[Prediction], folder: Path) -> dict[str, Any]:
    write_token_experts(lm, predictions, folder)
    found: dict[str, Any] = json.loads((folder / TOKEN_EXPERTS).read_text())
    return found


def test_against_the_gates_of_one_pass(mixed: LanguageModel, tmp_path: Path) -> None:
    found = _written(mixed, [_prediction(ANSWER)], tmp_path)
    row = mixed.template.encode("What is two?", ANSWER)
    with torch.inference_mode(), collect_routing(mixed.model, keep_tokens=True) as routing:
        mixed.model(torch.tensor([row.input_ids]))
    gates_MTE = torch.stack([module.tokens[0][0] for module in routing.modules.values()])
    count = len(found["answers"][0]["tokens"])
    first = row.prompt_length - 1
    wanted = gates_MTE.mean(dim=0)[first : first + count]
    torch.testing.assert_close(torch.tensor(found["answers"][0]["gates"]), wanted, atol=6e-4, rtol=0)
    assert found["choices"] == ["aa", "bb", "cc"]
    assert [layer["layer"] for layer in found["layers"]] == ["model.layers.0", "model.layers.1"]
    layer = torch.stack([one.tokens[0][0] for name, one in routing.modules.items() if ".layers.0." in name])
    wanted_layer = layer[:, first : first + count].mean(dim=(0, 1))
    torch.testing.assert_close(torch.tensor(found["layers"][0]["gates"]), wanted_layer, atol=6e-4, rtol=0)


def test_tokens_join_to_the_answer_without_the_end_of_the_turn(mixed: LanguageModel, tmp_path: Path) -> None:
    found = _written(mixed, [_prediction(ANSWER)], tmp_path)
    assert "".join(found["answers"][0]["tokens"]) == ANSWER
    assert sum(map(sum, found["answers"][0]["gates"])) == pytest.approx(
        len(found["answers"][0]["tokens"]), abs=0.1
    )


def test_empty_and_long_answers(mixed: LanguageModel, tmp_path: Path) -> None:
    predictions = [_prediction("", 0), _prediction("yes no " * 90, 1)]
    first, second = _written(mixed, predictions, tmp_path)["answers"]
    assert (first["id"], first["tokens"], first["gates"]) == ("test-0", [], [])
    assert len(second["tokens"]) == len(second["gates"]) == MAX_TOKENS


def test_only_the_first_answers(mixed: LanguageModel, tmp_path: Path) -> None:
    found = _written(mixed, [_prediction("yes", place) for place in range(MAX_ANSWERS + 2)], tmp_path)
    assert [one["id"] for one in found["answers"]] == [f"test-{place}" for place in range(MAX_ANSWERS)]


def test_nothing_answered_writes_nothing(mixed: LanguageModel, tmp_path: Path) -> None:
    write_token_experts(mixed, [_prediction("")], tmp_path)
    assert not (tmp_path / TOKEN_EXPERTS).exists()


def test_one_decision_a_prompt(tiny_lm: LanguageModel, lora_folder: LoraFolder, tmp_path: Path) -> None:
    experts = {name: lora_folder(name, seed=seed) for seed, name in enumerate(["aa", "bb"])}
    tiny_lm.model = build_mixture(
        tiny_lm.model, experts, top_k=1, router_init_std=1.0, router_granularity="sequence"
    ).eval()
    gates = _written(tiny_lm, [_prediction("yes no maybe")], tmp_path)["answers"][0]["gates"]
    assert len(gates) > 2
    assert all(gate == gates[0] for gate in gates)
