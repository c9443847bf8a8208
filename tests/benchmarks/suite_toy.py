"""Toy tasks for the suite on the tiny model: 4 shots a seed, a few test rows, 5 adapters, 40 open rows."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from suite.budget import Start
from suite.cell import Cell
from suite.recipe import TaskRecipe
from suite.shared_work import SharedWork

from kshot.config import DataConfig, TrainingConfig

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
START = Start(data=DataConfig(budget=6, threshold=1.0, encoder="base-model"))
TRAINING = TrainingConfig(
    learning_rate=0.01, num_train_epochs=1, per_device_train_batch_size=4, gradient_accumulation_steps=1
)
WRITTEN = TaskRecipe(
    name="written",
    title="Written",
    kind="paper",
    scorer="exact_match",
    max_new_tokens=4,
    max_length=128,
    num_test=6,
)
CHOSEN = TaskRecipe(
    name="chosen", title="Chosen", kind="transfer", scorer="multiple_choice", max_length=128, num_test=6
)


def row(index: int, *, is_choice: bool = False) -> dict[str, Any]:
    a, b = NUMBERS[index % 8], NUMBERS[index // 8 % 8]
    found = {"id": f"row-{index}", "instruction": f"say {a} then {b}, number {index}", "output": f"{a} {b}"}
    if is_choice:
        found |= {"question": f"what is number {index}", "choices": [a, b, "nine"], "label": index % 3}
    return found


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_toy_data(folder: Path) -> None:
    """Write tasks/, kshot/ and open/ as under KSHOT_DATA."""
    for recipe in (WRITTEN, CHOSEN):
        rows = [row(index, is_choice=recipe is CHOSEN) for index in range(60)]
        write_parquet(folder / "tasks" / recipe.name / "train.parquet", rows[:40])
        write_parquet(folder / "tasks" / recipe.name / "test.parquet", rows[40:])
        for seed in range(3):
            shots = [one | {"rationale": "because"} for one in rows[4 * seed : 4 * seed + 4]]
            bare = [{k: v for k, v in shot.items() if k not in ("question", "label")} for shot in shots]
            path = folder / "kshot" / recipe.name / f"seed{seed}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(shot) + "\n" for shot in bare))
    write_parquet(folder / "open" / "rows.parquet", [row(index) for index in range(100, 140)])


def toy_work(folder: Path, model: Path) -> SharedWork:
    """Return shared work on the data of `write_toy_data`, and on a bank, that lie in `folder`."""
    return SharedWork(
        base=str(model),
        dtype="float32",
        bank_source=str(folder / "bank"),
        pool_sources=[str(folder / "data" / "open" / "*.parquet")],
        work=folder / "work",
        training=TRAINING,
    )


def toy_cell(recipe: TaskRecipe, arm: str, info: Any, seed: int = 0) -> Cell:
    return Cell(recipe, arm, info, seed, START)
