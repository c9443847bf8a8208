"""A bank is really trained, adapter by adapter, and goes on where it was stopped."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file

from kshot.bank import Bank, build_bank, row_hash, training_row_hashes
from kshot.bank.build import mean_nll
from kshot.bank.fingerprint import fingerprint
from kshot.errors import ConfigError, ExampleError, SourceError
from kshot.examples import read_examples
from kshot.language_model import LanguageModel


@pytest.fixture
def recipe(tiny_model_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Two sets of 12 rows, whose answers are always the same."""
    for name, answer in {"yes": "yes yes yes", "no": "no no no"}.items():
        lines = [json.dumps({"instruction": f"question {index}", "output": answer}) for index in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return {
        "name": "tiny",
        "base_model": str(tiny_model_folder),
        "rows": 8,
        "held_out": 4,
        "r": 4,
        "training": {
            "learning_rate": 1e-2,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
        },
        "adapters": [
            {"name": "yes", "data": "yes.jsonl", "licence": "MIT"},
            {"name": "no", "data": "no.jsonl"},
        ],
    }


@pytest.fixture
def build(recipe: dict[str, Any], tmp_path: Path) -> Any:
    """Builds the recipe as it is now and returns the lines reported."""

    def run() -> list[str]:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        said: list[str] = []
        build_bank(tmp_path / "recipe.yaml", tmp_path / "bank", report=said.append)
        return said

    return run


def record(tmp_path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "bank" / name / "training.json").read_text())
    return found


def test_build_trains_and_records(build: Any, tmp_path: Path, tiny_lm: LanguageModel) -> None:
    said = build()
    bank = Bank.open(tmp_path / "bank")
    assert bank.names == ["no", "yes"]
    assert bank.verify() == {"no": None, "yes": None}
    entry = bank["yes"].entry
    assert (entry.r, entry.licence, entry.trained_on, entry.num_rows) == (4, "MIT", "yes", 8)
    for line, name in zip(said, ["yes", "no"], strict=True):
        found = record(tmp_path, name)
        assert found["held_out_nll"] < found["base_nll"] - 0.05
        assert (found["train_rows"], found["held_out_rows"]) == (8, 4)
        assert found["loss_last_third"] < found["loss_first_third"]
        assert line.startswith(
            f"{name}: held-out NLL {found['base_nll']:.3f} -> {found['held_out_nll']:.3f}, 8 rows"
        )
        assert f"**{found['held_out_nll']}**" in (tmp_path / "bank" / name / "README.md").read_text()
        assert f"**{found['held_out_nll']}**" in (tmp_path / "bank" / "README.md").read_text()


def test_against_peft_what_is_measured_is_what_is_stored(
    build: Any, tmp_path: Path, tiny_lm: LanguageModel
) -> None:
    build()
    weights = load_file(tmp_path / "bank" / "yes" / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    rows = [tiny_lm.template.encode(f"question {index}", "yes yes yes") for index in range(12)]
    base = [values.mean() for values in tiny_lm.token_nll(rows)]
    tiny_lm.model = PeftModel.from_pretrained(tiny_lm.model, tmp_path / "bank" / "yes")
    tuned = [values.mean() for values in tiny_lm.token_nll(rows)]
    assert mean_nll(tiny_lm, rows) == pytest.approx(np.mean(tuned))
    found = record(tmp_path, "yes")
    assert min(base) - 1e-4 <= found["base_nll"] <= max(base) + 1e-4  # which four rows were held out is drawn
    assert min(tuned) - 1e-4 <= found["held_out_nll"] <= max(tuned) + 1e-4


def test_invariant_same_recipe_same_bytes(build: Any, tmp_path: Path) -> None:
    build()
    first = {path.name: (path / "adapter_model.safetensors").read_bytes() for path in folders(tmp_path)}
    (tmp_path / "bank").rename(tmp_path / "earlier")
    build()
    assert {
        path.name: (path / "adapter_model.safetensors").read_bytes() for path in folders(tmp_path)
    } == first
    assert len(set(first.values())) == 2


def folders(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "bank").iterdir() if path.is_dir())


def test_only_what_changed_is_trained_again(build: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    build()
    assert build() == ["yes: kept", "no: kept"]
    recipe["adapters"][1]["r"] = 2
    recipe["training"]["report_to"] = "none"
    kept, trained = build()
    assert (kept, trained.partition(":")[0]) == ("yes: kept", "no")
    assert Bank.open(tmp_path / "bank")["no"].entry.r == 2
    recipe["seed"] = 1
    assert not any(line.endswith("kept") for line in build())


def test_changed_data_trains_again(build: Any, tmp_path: Path) -> None:
    build()
    path = tmp_path / "no.jsonl"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert Bank.open(tmp_path / "bank")["no"].entry.data_sha256 == digest
    path.write_text(path.read_text().replace("question 3", "question three"))
    kept, trained = build()
    assert (kept, trained.partition(":")[0]) == ("yes: kept", "no")
    path.rename(tmp_path / "elsewhere.jsonl")
    assert build() == ["yes: kept", "no: kept; its data is not here to compare"]


def test_training_rows_are_known_by_their_hashes(build: Any, tmp_path: Path) -> None:
    build()
    found = training_row_hashes(Bank.open(tmp_path / "bank")["yes"])
    rows = read_examples(tmp_path / "yes.jsonl")
    assert found is not None
    assert len(found) == 8  # and none of the 4 rows that were held out
    assert found < {row_hash(row) for row in rows}


def test_fingerprints_are_stored(build: Any, tmp_path: Path) -> None:
    build()
    adapter = Bank.open(tmp_path / "bank")["yes"]
    assert adapter.fingerprint is not None
    assert np.array_equal(adapter.fingerprint, fingerprint(adapter.load()))


def test_a_stopped_build_leaves_no_half_adapter(build: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["adapters"][1]["data"] = "none.jsonl"
    with pytest.raises(SourceError, match=r"expected a file at .*none.jsonl"):
        build()
    assert Bank.open(tmp_path / "bank").names == ["yes"]
    assert [path.name for path in folders(tmp_path)] == ["yes"]
    recipe["adapters"][1]["data"] = "no.jsonl"
    assert [line.partition(":")[0] for line in build()] == ["yes", "no"]
    assert Bank.open(tmp_path / "bank").names == ["no", "yes"]


def test_an_error_while_training_leaves_no_half_adapter(
    build: Any, recipe: dict[str, Any], tmp_path: Path
) -> None:
    build()
    before = sorted(path.name for path in (tmp_path / "bank").rglob("*"))
    weights = (tmp_path / "bank" / "yes" / "adapter_model.safetensors").read_bytes()
    recipe["target_modules"] = ["no_such_proj"]
    with pytest.raises(
        ConfigError, match=r"expected target_modules of linear layers of .*, got no_such_proj: Target"
    ):
        build()
    assert sorted(path.name for path in (tmp_path / "bank").rglob("*")) == before
    assert (tmp_path / "bank" / "yes" / "adapter_model.safetensors").read_bytes() == weights


def test_drafts_of_a_killed_build_are_removed(build: Any, tmp_path: Path) -> None:
    (tmp_path / "bank" / ".yes.x.partial").mkdir(parents=True)
    build()
    assert [path.name for path in folders(tmp_path)] == ["no", "yes"]


def test_too_few_rows(build: Any, recipe: dict[str, Any]) -> None:
    recipe["held_out"] = 12
    with pytest.raises(
        ExampleError, match="yes: expected more than 12 rows of at most 1024 tokens, got 12: lower"
    ):
        build()


def test_equal_rows_are_in_one_part_only(build: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "yes.jsonl"
    path.write_text(path.read_text() + "\n" + path.read_text())
    recipe["rows"] = 100
    build()
    assert record(tmp_path, "yes")["train_rows"] == 12 - 4


def test_training_stops_when_held_out_rows_lose_and_the_best_epoch_is_kept(
    recipe: dict[str, Any], build: Any, tmp_path: Path
) -> None:
    recipe["patience"] = 1
    recipe["adapters"] = recipe["adapters"][:1]
    recipe["training"] |= {"num_train_epochs": 30, "lr_scheduler_type": "constant", "learning_rate": 0.3}

    build()

    record = json.loads((tmp_path / "bank" / "yes" / "training.json").read_text())
    by_epoch = record["held_out_nll_by_epoch"]
    assert len(by_epoch) < 30
    assert record["epoch"] == len(by_epoch) - 1
    assert by_epoch[-1] >= by_epoch[-2] == min(by_epoch)
    assert record["held_out_nll"] == pytest.approx(min(by_epoch), rel=0.05, abs=0.01)  # rounded to bfloat16
    assert record["train_tokens"] % len(by_epoch) == 0
    assert f"{record['epoch']} epoch(s)" in (tmp_path / "bank" / "yes" / "README.md").read_text()


@pytest.mark.parametrize(("epochs_of_tokens", "epochs"), [(0.5, 1), (2.5, 2), (9, 3)])
def test_training_is_the_whole_epochs_that_fit_into_the_tokens(
    recipe: dict[str, Any], build: Any, tmp_path: Path, epochs_of_tokens: float, epochs: int
) -> None:
    recipe["adapters"] = recipe["adapters"][:1]
    recipe["training"] |= {"num_train_epochs": 1}
    build()
    one_epoch = record(tmp_path, "yes")["train_tokens"]
    shutil.rmtree(tmp_path / "bank")
    recipe["training"] |= {"num_train_epochs": 3}
    recipe["tokens"] = int(epochs_of_tokens * one_epoch)
    build()
    assert record(tmp_path, "yes")["train_tokens"] == epochs * one_epoch
