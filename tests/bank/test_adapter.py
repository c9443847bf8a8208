"""An adapter's entry, its checksum and its factors."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from kshot.bank import Adapter, AdapterEntry
from kshot.bank.adapter import WEIGHTS, describe, sha256_of
from kshot.errors import AdapterError


@pytest.fixture
def adapter(lora_folder: Any) -> Adapter:
    folder = lora_folder("math", r=4, rank_pattern={"v_proj": 6})
    return Adapter(folder, describe(folder, "math", licence="MIT"))


def test_entry(adapter: Adapter) -> None:
    entry = adapter.entry
    assert (entry.name, entry.r, entry.target_modules, entry.licence) == (
        "math",
        6,
        ("q_proj", "v_proj"),
        "MIT",
    )
    assert entry.sha256 == sha256_of(adapter.folder / WEIGHTS)
    assert "tiny-model" in str(entry.base_model)
    assert describe(adapter.folder, "x", base_model="other").base_model == "other"


def test_load(adapter: Adapter) -> None:
    expert = adapter.load()
    assert expert.name == adapter.name == "math"
    assert len(expert.factors) == 4
    adapter.verify()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", ".hidden", "7", "a/b", "a b"])
def test_names_that_are_no_folder_of_the_bank(name: str) -> None:
    with pytest.raises(ValidationError, match="String should match pattern"):
        AdapterEntry(name=name, r=1, target_modules=(), sha256="")


@pytest.mark.parametrize("name", ["a", "math_cot", "7b.math-2", "-x", "1.5b"])
def test_names_that_are(name: str) -> None:
    assert AdapterEntry(name=name, r=1, target_modules=(), sha256="").name == name


def test_tampered_weights(adapter: Adapter) -> None:
    weights = load_file(adapter.folder / WEIGHTS)
    key = next(iter(weights))
    save_file({**weights, key: weights[key] + 1}, adapter.folder / WEIGHTS)
    with pytest.raises(
        AdapterError, match=r"math: expected sha256 .*: the weights changed since they joined the bank"
    ):
        adapter.verify()


def test_truncated_weights(adapter: Adapter) -> None:
    path = adapter.folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(AdapterError, match="math: expected sha256"):
        adapter.verify()
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors"):
        describe(adapter.folder, "math")


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"cannot read .*none: No such file or directory"):
        sha256_of(tmp_path / "none")
