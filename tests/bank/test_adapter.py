"""An adapter's entry, its checksum and its factors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from kshot.bank import Adapter, AdapterEntry
from kshot.bank.adapter import CONFIG, WEIGHTS, describe, sha256_of
from kshot.errors import AdapterError, ConfigError


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


def test_tampered_settings(adapter: Adapter) -> None:
    before = adapter.digest
    path = adapter.folder / CONFIG
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 80'))
    assert sha256_of(path) != adapter.entry.config_sha256
    for check in (adapter.verify, adapter.load):
        with pytest.raises(
            AdapterError,
            match=r"math: expected sha256 .* of adapter_config.json, got .*: the settings changed since they",
        ):
            check()
    assert Adapter(adapter.folder, describe(adapter.folder, "math")).digest != before


def test_the_digest_is_of_both_files_and_nothing_else(adapter: Adapter, lora_folder: Any) -> None:
    assert replace(adapter, entry=adapter.entry.model_copy(update={"licence": "x"})).digest == adapter.digest
    old = replace(adapter, entry=adapter.entry.model_copy(update={"config_sha256": None}))
    assert old.digest == adapter.digest
    (adapter.folder / CONFIG).unlink()
    with pytest.raises(AdapterError, match=r"cannot read .*adapter_config.json: No such file"):
        _ = old.digest
    other = lora_folder("other", seed=2, r=4, rank_pattern={"v_proj": 6})
    assert Adapter(other, describe(other, "math")).digest != adapter.digest


def test_impossible_name(adapter: Adapter) -> None:
    with pytest.raises(ConfigError, match=r"expected a name of letters, digits.* got 'a b'"):
        describe(adapter.folder, "a b")


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
