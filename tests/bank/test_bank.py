"""A bank is a folder of adapters and its index."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.bank import Bank
from kshot.errors import AdapterError, ConfigError, RunFolderError, SourceError


@pytest.fixture
def bank(lora_folder: Any, tmp_path: Path) -> Bank:
    found = Bank.create(tmp_path / "bank")
    found.add(lora_folder("math", 1), licence="MIT", trained_on="sums")
    found.add(lora_folder("code", 2), name="Code-2")
    return found


def test_roundtrip(bank: Bank, tmp_path: Path) -> None:
    opened = Bank.open(tmp_path / "bank")
    assert opened.names == bank.names == ["Code-2", "math"]
    assert [adapter.entry for adapter in opened] == [adapter.entry for adapter in bank]
    assert (opened["math"].entry.licence, opened["math"].entry.trained_on) == ("MIT", "sums")
    assert opened["math"].entry.origin == str(tmp_path / "math")
    assert ("math" in opened, "none" in opened, len(opened)) == (True, False, 2)
    one, other = opened["math"].load(), Bank.open(tmp_path)["math"].load()
    assert all(torch.equal(one.factors[name].A_rI, other.factors[name].A_rI) for name in one.factors)
    assert opened.verify() == {"Code-2": None, "math": None}


def test_only_known_files_are_copied(bank: Bank, lora_folder: Any, tmp_path: Path) -> None:
    source = lora_folder("extra")
    (source / "optimizer.pt").write_bytes(b"")
    bank.add(source)
    names = {path.name for path in (tmp_path / "bank" / "extra").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_a_folder_without_index(lora_folder: Any, tmp_path: Path) -> None:
    lora_folder("b")
    lora_folder("a")
    lora_folder(".c.x.partial")  # left by a killed process
    (tmp_path / "no adapter").mkdir()
    bank = Bank.open(tmp_path)
    assert bank.names == ["a", "b"]
    bank.add(tmp_path / "a", name="c")
    assert Bank.open(tmp_path).names == ["a", "b", "c"]


def test_several_banks_as_one(bank: Bank, lora_folder: Any, tmp_path: Path) -> None:
    other = Bank.create(tmp_path / "other")
    other.add(lora_folder("facts"))
    both = Bank.open_all([tmp_path / "bank", tmp_path / "other"])
    assert both.names == ["Code-2", "facts", "math"]
    with pytest.raises(
        ConfigError, match="expected one whole bank to add to, got a part of one or several as one"
    ):
        both.add(tmp_path / "facts", name="x")
    assert Bank.open_all([tmp_path / "bank"]).folder == tmp_path / "bank"
    other.add(tmp_path / "math")
    with pytest.raises(
        ConfigError, match="expected distinct adapter names over all banks, got math more than once"
    ):
        Bank.open_all([tmp_path / "bank", tmp_path / "other"])


def test_subset(bank: Bank, tmp_path: Path) -> None:
    part = bank.subset(["math"])
    assert part.names == ["math"]
    with pytest.raises(ConfigError, match="expected one whole bank to add to"):
        part.add(tmp_path / "math", name="x")
    with pytest.raises(ConfigError, match="expected one whole bank to add to"):
        part.record(bank["math"].entry)
    assert Bank.open(tmp_path / "bank").names == ["Code-2", "math"]


def test_unknown_name(bank: Bank) -> None:
    with pytest.raises(
        ConfigError, match="expected an adapter of the bank, got 'maths'; known: Code-2, math"
    ):
        bank["maths"]


def test_taken_and_impossible_names(bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="expected a new name, got 'math', which the bank holds"):
        bank.add(tmp_path / "math")
    with pytest.raises(ConfigError, match=r"expected a name of letters, digits.* got '../x'"):
        bank.add(tmp_path / "math", name="../x")


def test_name_of_a_folder_with_a_revision_sign(bank: Bank, lora_folder: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected a name of letters, digits.* got 'a@b'"):
        bank.add(lora_folder("a@b"))


def test_no_such_adapter(bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        bank.add(tmp_path / "none")


@pytest.mark.parametrize("damage", ["pickle", "truncated"])
def test_unsafe_and_damaged_adapters_are_refused(bank: Bank, tmp_path: Path, damage: str) -> None:
    source = shutil.copytree(tmp_path / "math", tmp_path / "bad")
    weights = source / "adapter_model.safetensors"
    if damage == "pickle":
        weights.unlink()
        torch.save({}, source / "adapter_model.bin")
    else:
        weights.write_bytes(weights.read_bytes()[:-10])
    index = (tmp_path / "bank" / "bank.json").read_bytes()
    with pytest.raises(AdapterError, match=r"pickle|adapter_model.safetensors"):
        bank.add(source)
    assert (tmp_path / "bank" / "bank.json").read_bytes() == index
    assert sorted(path.name for path in (tmp_path / "bank").iterdir()) == ["Code-2", "bank.json", "math"]
    with pytest.raises(AdapterError, match=r"pickle|adapter_model.safetensors"):
        Bank.open(tmp_path)


def test_verify_names_what_is_wrong(bank: Bank, tmp_path: Path) -> None:
    weights = tmp_path / "bank" / "math" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    found = bank.verify()
    assert found["Code-2"] is None
    assert "math: expected sha256" in str(found["math"])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected a bank folder at .*none, found none"):
        Bank.open(tmp_path / "none")
    with pytest.raises(SourceError, match=r"expected adapter folders in .*, found none; add some"):
        Bank.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        Bank.create(tmp_path / "file" / "bank")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "adapters": [', "cannot read .*bank.json: Expecting value"),
        ("[]", "cannot read .*bank.json: list indices"),
        ("{}", "cannot read .*bank.json: 'format'"),
        ('{"format": 1, "adapters": [{"name": "math"}]}', "cannot read .*bank.json: .* validation errors"),
        (
            '{"format": 2, "adapters": [{"title": "math"}]}',
            "expected format 1 in .*bank.json, got 2: update kshot",
        ),
    ],
)
def test_damaged_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bank.json").write_text(text)
    with pytest.raises(AdapterError, match=message):
        Bank.open(tmp_path)


def test_index_without_its_folder(bank: Bank, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "bank" / "math")
    with pytest.raises(
        AdapterError, match=r"expected the adapter folder .*math that bank.json names, found none"
    ):
        Bank.open(tmp_path / "bank")


def test_index_that_leaves_the_bank(bank: Bank, tmp_path: Path) -> None:
    path = tmp_path / "bank" / "bank.json"
    index = json.loads(path.read_text())
    index["adapters"][0]["name"] = "../math"
    path.write_text(json.dumps(index))
    with pytest.raises(AdapterError, match=r"cannot read .*bank.json: .*should match pattern"):
        Bank.open(tmp_path / "bank")
