"""Tiny models and LoRA folders, made in code."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from kshot.mixture import LoraExpert, LoraFactors

MakeModel = Callable[..., nn.Module]
MakeLora = Callable[..., Path]
VOCAB = 64


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> Iterator[None]:
    # transformers 5.23 deprecates what peft 0.21 reads; the filter lasts for the test
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_llama() -> MakeModel:
    """The same Llama each time: 2 layers, hidden 32, vocabulary 64."""

    def make(dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(7)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
        )
        return LlamaForCausalLM(config).to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_gpt2() -> MakeModel:
    """The same GPT-2 each time, whose linears are Conv1D."""

    def make() -> nn.Module:
        torch.manual_seed(8)
        config = GPT2Config(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
        )
        return GPT2LMHeadModel(config).eval()

    return make


@pytest.fixture
def make_lora(make_llama: MakeModel, tmp_path: Path) -> MakeLora:
    """A PEFT LoRA folder of the tiny Llama (or of `base`), with random A and B."""

    def make(name: str, base: nn.Module | None = None, seed: int = 1, **settings: Any) -> Path:
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | settings
        model = get_peft_model(make_llama() if base is None else base, LoraConfig(**settings))
        torch.manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def two_experts(make_lora: MakeLora) -> dict[str, Path]:
    """Two experts of the tiny Llama that differ in rank, scaling and modules."""
    return {
        "math": make_lora("expert-1", seed=1),
        "code/b.2": make_lora(
            "expert-2", seed=2, r=3, use_rslora=True, target_modules=["q_proj", "down_proj"]
        ),
    }


@pytest.fixture
def token_ids() -> torch.Tensor:
    return torch.randint(2, VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def random_expert() -> Callable[..., LoraExpert]:
    """Makes an expert from {module: (inputs, outputs, r, scaling)}."""

    def make(name: str, modules: dict[str, tuple[int, int, int, float]], seed: int) -> LoraExpert:
        draw = torch.Generator().manual_seed(seed)
        return LoraExpert(
            name,
            None,
            {
                module: LoraFactors(
                    torch.randn(r, inputs, generator=draw), torch.randn(outputs, r, generator=draw), scaling
                )
                for module, (inputs, outputs, r, scaling) in modules.items()
            },
        )

    return make
