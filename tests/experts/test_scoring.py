"""Scoring: against a plain PEFT loop at batch 1."""

import math

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from kshot.bank import Bank
from kshot.bank.adapter import WEIGHTS, Adapter, describe
from kshot.errors import AdapterError
from kshot.examples import Example
from kshot.experts import score_experts

SHOTS = [
    Example("add one and two", "three", answer="three", rationale="one and two is three", id="a"),
    Example("say cat", "the cat", id="b"),
    Example("count", "one two three four five", rationale="start at one", id="c"),
]


@pytest.fixture
def bank(lora_folder) -> Bank:
    folders = [lora_folder("first", seed=1), lora_folder("second", seed=2, r=2)]
    return Bank([Adapter(folder, describe(folder, folder.name)) for folder in folders])


def test_against_a_plain_peft_loop(tiny_lm, tiny_model_folder, bank) -> None:
    scores = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4)
    for score, adapter in zip(scores, bank, strict=True):
        base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        model = PeftModel.from_pretrained(base, str(adapter.folder)).eval()
        perplexities = []
        for shot in SHOTS:
            target = f"{shot.rationale}\n{shot.output}" if shot.rationale else shot.output
            row = tiny_lm.template.encode(shot.request, target)
            ids = torch.tensor([row.input_ids])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, row.prompt_length - 1 : -1]
            perplexities.append(math.exp(cross_entropy(logits, ids[0, row.prompt_length :]).item()))
        assert score.reasoning_ppl == pytest.approx(sum(perplexities) / 3, rel=1e-3)
        assert score.mean_nll == pytest.approx(sum(map(math.log, perplexities)) / 3, rel=1e-3)
        assert (score.n, score.num_rationales) == (3, 2)


def test_invariant_base_model_is_left_as_it_was(tiny_lm, bank) -> None:
    rows = [tiny_lm.template.encode("say cat", "the cat")]
    before = tiny_lm.token_nll(rows)[0]
    model = tiny_lm.model
    score_experts(tiny_lm, bank, SHOTS, max_new_tokens=2)
    assert type(tiny_lm.model) is type(model)
    assert (tiny_lm.token_nll(rows)[0] == before).all()


def test_an_adapter_of_another_base_is_refused_and_the_base_kept(tiny_lm, lora_folder) -> None:
    folder = lora_folder("other", seed=3)
    weights = load_file(folder / WEIGHTS)
    wider = {key: value.repeat(1, 2) if "lora_A" in key else value for key, value in weights.items()}
    save_file(wider, folder / WEIGHTS)
    bank = Bank([Adapter(folder, describe(folder, "other"))])
    with pytest.raises(AdapterError, match="other"):
        score_experts(tiny_lm, bank, SHOTS)
    assert "Peft" not in type(tiny_lm.model).__name__
