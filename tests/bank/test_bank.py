"""A bank is a folder of adapters and its index."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.bank import Bank, Limits
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
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "fingerprint.safetensors",
    }


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
        ConfigError,
        match="expected one whole bank to add to, got a part of one, several as one or a single adapter",
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
    with pytest.raises(ConfigError, match="expected an adapter of the bank, got 'maths'; it holds math"):
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
    assert {path.name for path in (tmp_path / "bank").iterdir()} == {
        ".bank.lock",
        "Code-2",
        "bank.json",
        "math",
    }
    with pytest.raises(AdapterError, match=r"pickle|adapter_model.safetensors"):
        Bank.open(tmp_path)


def test_verify_names_what_is_wrong(bank: Bank, tmp_path: Path) -> None:
    weights = tmp_path / "bank" / "math" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    found = bank.verify()
    assert found["Code-2"] is None
    assert "math: expected sha256" in str(found["math"])


def test_nothing_there(tmp_path: Path, lora_folder: Any) -> None:
    with pytest.raises(SourceError, match=r"expected a bank or adapter folder at .*none, found none"):
        Bank.open(tmp_path / "none")
    with pytest.raises(SourceError, match=r"expected adapter folders in .*, found none; add some"):
        Bank.open(tmp_path)
    (tmp_path / "file").write_text("")
    bank = Bank.create(tmp_path / "file" / "bank")
    with pytest.raises(RunFolderError, match="cannot write"):
        bank.add(lora_folder("math"))


def test_index_without_its_folder(bank: Bank, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "bank" / "math")
    with pytest.raises(
        AdapterError, match=r"expected the adapter folder .*math that bank.json names, found none"
    ):
        Bank.open(tmp_path / "bank")


@pytest.fixture
def adapter_folder(lora_folder: Any) -> Path:
    found: Path = lora_folder("alone", 3)
    return found


def test_one_adapter_is_a_bank_of_one(adapter_folder: Path, bank: Bank, tmp_path: Path) -> None:
    before = sorted(path.name for path in adapter_folder.iterdir())
    alone = Bank.open(adapter_folder)
    assert (alone.names, alone.folder) == (["alone"], None)
    assert alone["alone"].load().factors.keys() == bank["math"].load().factors.keys()
    assert Bank.open_all([tmp_path / "bank", adapter_folder]).names == ["Code-2", "alone", "math"]
    assert sorted(path.name for path in adapter_folder.iterdir()) == before
    with pytest.raises(ConfigError, match="or a single adapter: open its folder"):
        alone.add(adapter_folder, name="x")
    with pytest.raises(ConfigError, match=r"expected the folder of a bank, got .*alone, which is an adapter"):
        Bank.create(adapter_folder)


def test_folders_whose_names_are_none(lora_folder: Any, tmp_path: Path) -> None:
    folder = lora_folder("7")
    with pytest.raises(ConfigError, match=r"expected a name of letters, .* got '7': .* or rename the folder"):
        Bank.open(folder)
    with pytest.raises(ConfigError, match=r"expected a name of letters, .* got '7'"):
        Bank.open(tmp_path)


def test_adding_to_a_folder_without_index_keeps_what_is_there(lora_folder: Any, tmp_path: Path) -> None:
    (tmp_path / "bank").mkdir()
    lora_folder("a").rename(tmp_path / "bank" / "a")
    Bank.create(tmp_path / "bank").add(lora_folder("b"))
    assert Bank.open(tmp_path / "bank").names == ["a", "b"]


def test_what_cannot_be_added_makes_no_bank(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        Bank.create(tmp_path / "new").add(tmp_path / "none")
    assert not (tmp_path / "new").exists()


def test_licence_and_data_of_a_folder_are_those_of_its_card(lora_folder: Any, tmp_path: Path) -> None:
    folder = lora_folder("sql")
    card = "---\nlicense: other\nlicense_name: gemma\ndatasets: [a/b, c/d]\n---\n# sql\n"
    (folder / "README.md").write_text(card)
    bank = Bank.create(tmp_path / "bank")
    entry = bank.add(folder).entry
    assert (entry.licence, entry.trained_on) == ("gemma", "a/b, c/d")
    assert bank.add(folder, name="mine", licence="mit").entry.licence == "mit"
    (folder / "README.md").write_text("---\n: [\n---\n")
    entry = bank.add(folder, name="damaged").entry
    assert (entry.licence, entry.trained_on) == ("unknown", None)
    with pytest.raises(AdapterError, match=r"sql: expected the licence mit, got unknown"):
        bank.add(folder, name="refused", limits=Limits(licences=("mit",)))
    with pytest.raises(AdapterError, match=r"sql: expected at most 0.0 MB, got 0.0 MB: raise --max-size"):
        bank.add(folder, name="refused", limits=Limits(max_bytes=1000))
    assert not (tmp_path / "bank" / "refused").exists()


def test_an_adapter_that_changes_nothing_is_refused(lora_folder: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="adapter 'idle': expected a change of the weights"):
        Bank.create(tmp_path / "bank").add(lora_folder("idle", std=0.0))


def test_two_at_once_lose_nothing(bank: Bank, lora_folder: Any, tmp_path: Path) -> None:
    other = Bank.open(tmp_path / "bank")
    other.add(lora_folder("facts"))
    bank.add(lora_folder("poems"))
    assert bank.names == ["Code-2", "facts", "math", "poems"]
    assert Bank.open(tmp_path / "bank").names == bank.names
    with pytest.raises(AdapterError, match="expected a new name, got 'poems', which the bank holds"):
        other.add(tmp_path / "poems")
    assert Bank.open(tmp_path / "bank").verify() == dict.fromkeys(bank.names)


def test_a_draft_of_a_killed_process_is_removed(bank: Bank, lora_folder: Any, tmp_path: Path) -> None:
    (tmp_path / "bank" / ".facts.x.partial").mkdir()
    (tmp_path / "bank" / ".poems.x.partial").mkdir()  # may be another process's
    bank.add(lora_folder("facts"))
    left = {path.name for path in (tmp_path / "bank").iterdir() if path.is_dir()}
    assert left == {"Code-2", "facts", "math", ".poems.x.partial"}


def test_opening_and_subsets_read_no_weights(bank: Bank, tmp_path: Path) -> None:
    for weights in (tmp_path / "bank").glob("*/*.safetensors"):
        weights.write_bytes(b"")
    opened = Bank.open_all([tmp_path / "bank"])
    assert opened.subset(["math"])["math"].entry == bank["math"].entry
    assert opened["math"].digest == bank["math"].digest


def test_completing_an_index_of_format_1(bank: Bank, tmp_path: Path) -> None:
    path = tmp_path / "bank" / "bank.json"
    complete = path.read_bytes()
    index = json.loads(complete)
    for entry in index["adapters"]:
        del entry["config_sha256"], entry["data_sha256"]
    path.write_text(json.dumps(index | {"format": 1}))
    (tmp_path / "bank" / "math" / "fingerprint.safetensors").unlink()
    old = Bank.open(tmp_path / "bank")
    assert [adapter.digest for adapter in old] == [adapter.digest for adapter in bank]
    assert "Code-2: expected a recorded sha256 of adapter_config.json, got none" in str(
        old.verify()["Code-2"]
    )
    assert old["math"].load().name == "math"
    assert old.complete() == ["Code-2", "math"]
    assert path.read_bytes() == complete
    assert old["math"].fingerprint is not None
    assert Bank.open(tmp_path / "bank").complete() == []
    assert path.read_bytes() == complete


def test_completing_trusts_no_weights_that_changed(bank: Bank, tmp_path: Path) -> None:
    weights = tmp_path / "bank" / "math" / "adapter_model.safetensors"
    shutil.copyfile(tmp_path / "bank" / "Code-2" / "adapter_model.safetensors", weights)
    (tmp_path / "bank" / "math" / "fingerprint.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"math: expected sha256 .*: the weights changed since they"):
        bank.complete()
    with pytest.raises(ConfigError, match="expected one whole bank to add to"):
        bank.subset(["math"]).complete()


def test_completing_a_folder_without_index_makes_one(lora_folder: Any, tmp_path: Path) -> None:
    lora_folder("a")
    assert Bank.open(tmp_path).complete() == ["a"]
    assert Bank.open(tmp_path).verify() == {"a": None}
    assert (tmp_path / "bank.json").is_file()
