"""A single adapter of the Hub is a bank of one, kept under its commit, and can be named in a task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kshot.bank import Bank
from kshot.bank.hub_errors import HubUnreachableError
from kshot.config import read_task
from kshot.errors import SourceError
from kshot.pipeline.inputs import Inputs
from kshot.progress import Silent

Files = Callable[..., dict[str, bytes]]
WEIGHTS = "adapter_model.safetensors"


def test_open(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    commit = hub.add("org/sql", adapter_files("sql"), card={"license": "mit"}).commit
    bank = Bank.open("hf://org/sql")
    assert (bank.names, bank.folder) == (["org--sql"], None)
    entry = bank["org--sql"].entry
    assert (entry.origin, entry.licence) == (f"hf://org/sql@{commit}", "mit")
    assert bank.verify() == {"org--sql": None}
    assert bank["org--sql"].fingerprint is not None
    assert bank["org--sql"].folder == tmp_path / "home" / "adapters" / "org--sql" / commit / "org--sql"
    assert [
        path.name
        for path in (tmp_path / "home" / "adapters" / "org--sql").iterdir()
        if ".partial" in path.name
    ] == []


def test_what_is_there_is_not_fetched_again(hub: Any, adapter_files: Files) -> None:
    commit = hub.add("org/sql", adapter_files("sql")).commit
    first = Bank.open(f"hf://org/sql@{commit}")
    hub.requests.clear()
    assert Bank.open(f"hf://org/sql@{commit}")["org--sql"].entry == first["org--sql"].entry
    assert hub.requests == []
    Bank.open("hf://org/sql@main")
    assert hub.fetched() == []


def test_a_branch_moves_and_a_commit_stays(hub: Any, adapter_files: Files) -> None:
    old = hub.add("org/sql", adapter_files("sql", 1)).commit
    before = Bank.open("hf://org/sql")["org--sql"]
    new = hub.add("org/sql", adapter_files("sql", 2)).commit
    after = Bank.open("hf://org/sql")["org--sql"]
    assert after.entry.origin == f"hf://org/sql@{new}"
    assert after.digest != before.digest
    assert Bank.open(f"hf://org/sql@{old}")["org--sql"].entry == before.entry


def test_without_the_hub_it_is_what_it_was_last(
    hub: Any, no_hub: Callable[[], None], adapter_files: Files
) -> None:
    hub.add("org/sql", adapter_files("sql"))
    first = Bank.open("hf://org/sql")["org--sql"].entry
    no_hub()
    assert Bank.open("hf://org/sql")["org--sql"].entry == first
    with pytest.raises(HubUnreachableError, match="hf://org/sql@v2: expected a whole answer from the Hub"):
        Bank.open("hf://org/sql@v2")


def test_what_cannot_be_fetched_leaves_nothing(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    hub.add("org/sql", adapter_files("sql"), faults={WEIGHTS: "changed"})
    with pytest.raises(SourceError, match="expected checksum"):
        Bank.open("hf://org/sql")
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []
    with pytest.raises(SourceError, match=r"expected an adapter folder or hf://owner/name.*got 'hf://org'"):
        Bank.open("hf://org")


def test_a_task_names_banks_folders_and_adapters_of_the_hub(
    hub: Any, adapter_files: Files, lora_folder: Any, tmp_path: Path
) -> None:
    commit = hub.add("org/sql", adapter_files("sql", 1)).commit
    Bank.create(tmp_path / "bank").add(lora_folder("math", 2))
    lora_folder("alone", 3)
    (tmp_path / "shots.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    task = {
        "name": "tiny",
        "base_model": "tiny",
        "shots": "shots.jsonl",
        "bank": ["bank", "alone", f"hf://org/sql@{commit}"],
        "experts": {"num_candidates": 2, "num_experts": 2},
        "mixture": {"top_k": 1},
        "data": {"budget": 0},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    inputs = Inputs(read_task(tmp_path / "task.yaml"), Silent())
    assert inputs.bank.names == ["alone", "math", "org--sql"]
    before = inputs.bank_digest
    config = tmp_path / "alone" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 4'))
    assert Inputs(read_task(tmp_path / "task.yaml"), Silent()).bank_digest != before
    task["experts"] |= {"exclude": ["al*", "sqll"]}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(
        ValueError, match="got 'sqll', which fits none of them; there are alone, math, org--sql"
    ):
        Inputs(read_task(tmp_path / "task.yaml"), Silent())
