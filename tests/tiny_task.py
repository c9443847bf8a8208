"""A task on the tiny model that runs in seconds: 4 shots, 6 test rows, 5 adapters, 60 open rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from .tiny_bank import write_bank

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def tiny_rows(count: int, start: int = 0, *, rationale: bool = True) -> list[dict[str, str]]:
    rows = []
    for index in range(start, start + count):
        a, b = NUMBERS[index % 10], NUMBERS[index // 10 % 10]
        row = {"instruction": f"say {a} then {b}, number {index}", "output": f"{a} {b}", "id": f"row-{index}"}
        rows.append(row | ({"rationale": f"first {a}"} if rationale else {}))
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tiny_task(folder: Path, model: Path, lora_folder: Callable[..., Path]) -> Path:
    """Write a task folder; return its task file."""
    write_bank(folder / "bank", lora_folder)
    write_rows(folder / "shots.jsonl", tiny_rows(4))
    write_rows(folder / "test.jsonl", tiny_rows(6, start=10))
    write_rows(folder / "pool.jsonl", tiny_rows(60, start=100, rationale=False))
    task = {
        "name": "tiny",
        "base_model": str(model),
        "shots": "shots.jsonl",
        "test": "test.jsonl",
        "bank": ["bank"],
        "pool": ["pool.jsonl"],
        "experts": {"num_candidates": 4, "num_experts": 3},
        "data": {"budget": 10, "threshold": 1.0, "encoder": "base-model"},
        "training": {
            "learning_rate": 0.01,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
        },
        "evaluation": {"max_new_tokens": 4},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder / "task.yaml"


def change_task(task: Path, **changes: Any) -> None:
    """Set keys of a task file; `section__key` is one of a section."""
    content = yaml.safe_load(task.read_text())
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            content.setdefault(section, {})[name] = value
        else:
            content[section] = value
    task.write_text(yaml.safe_dump(content))
