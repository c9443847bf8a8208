"""A tiny language model with a tokenizer, made in code, and PEFT LoRA folders for it.

`tiny_model_folder` and `tiny_lm` are the same model each time: a Llama of 2 layers and hidden size 32 whose
tokenizer has a ChatML template and the end token `<|im_end|>`. `lora_folder(name, seed)` writes an adapter,
`task` a whole task on that model.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the Hub client is imported: no test may need a network

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kshot.language_model import LanguageModel

from .tiny_task import write_tiny_task

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "system user assistant",
    "What is the sum of two and three? The answer is five.",
    "yes no maybe 0 1 2 3",
]

LoraFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache folder of the session: no test writes to the user's, but those of `real` find a model there."""
    if request.node.get_closest_marker("real") is None:
        monkeypatch.setenv("KSHOT_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config, safetensors and tokenizer, as on the Hub. Do not write to it."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = _tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.3,  # large, so that rows differ and greedy answers are not all alike
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_lm(tiny_model_folder: Path) -> LanguageModel:
    """The tiny model, freshly loaded: a test may train it."""
    return LanguageModel.load(str(tiny_model_folder), device="cpu")


@pytest.fixture
def lora_folder(tiny_model_folder: Path, tmp_path: Path) -> LoraFolder:
    """Writes a PEFT LoRA folder for the tiny model; `settings` are LoraConfig's."""

    def write(name: str, seed: int = 1, *, r: int = 4, std: float = 0.1, **settings: Any) -> Path:
        base = LlamaForCausalLM.from_pretrained(tiny_model_folder)
        config = {"lora_alpha": 2 * r, "target_modules": ["q_proj", "v_proj"], **settings}
        model = get_peft_model(base, LoraConfig(r=r, task_type="CAUSAL_LM", **config))
        draw = torch.Generator().manual_seed(seed)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                nn.init.normal_(parameter, std=std, generator=draw)
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
        return tmp_path / name

    return write


@pytest.fixture
def task(
    tmp_path: Path, tiny_model_folder: Path, lora_folder: LoraFolder, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The task file of `tiny_task`, in a folder of its own; the cache is empty, and the test's alone."""
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "home"))
    return write_tiny_task(tmp_path / "task", tiny_model_folder, lora_folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    end_of_text, start, end = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=end_of_text,
        model_max_length=512,
    )
    fast.chat_template = CHATML
    return fast
