"""Hashes of training rows tell whether an adapter saw a row, whatever its case and punctuation."""

from pathlib import Path
from typing import Any

import pytest

from kshot.bank import Adapter, Bank, row_hash, training_row_hashes
from kshot.bank.adapter import describe
from kshot.bank.row_hashes import MAX_HASHES, ROW_HASHES, write_row_hashes
from kshot.errors import AdapterError
from kshot.examples import Example


def row(text: str, **fields: Any) -> Example:
    return Example(instruction=text, output="x", **fields)


@pytest.fixture
def adapter(lora_folder: Any) -> Adapter:
    folder = lora_folder("math")
    return Adapter(folder, describe(folder, "math"))


def test_what_counts() -> None:
    assert (
        row_hash(row("What is 2+3?"))
        == row_hash(row("what  is: 2+3"))
        == row_hash(row("What", input="is 2+3"))
    )
    assert row_hash(row("What is 2+3?")) != row_hash(row("What is 2*3?"))
    assert row_hash(row("?!")) != row_hash(row("!?"))
    assert row_hash(row("Pick one: (A) x (B) y", question="Which?")) == row_hash(row("which"))
    assert 0 <= row_hash(row("a")) < 2**64


def test_golden() -> None:
    """blake2b(b'what is 2+3', digest_size=8), little endian: files written earlier stay comparable."""
    assert row_hash(row("What is 2+3?")) == GOLDEN


GOLDEN = 11323331580152931163


def test_roundtrip(adapter: Adapter) -> None:
    assert training_row_hashes(adapter) is None
    rows = [row(f"question {number}") for number in range(20)]
    write_row_hashes(adapter.folder, [*rows, *rows])
    assert training_row_hashes(adapter) == {row_hash(one) for one in rows}


def test_of_a_large_set_the_least_hashes_are_kept(adapter: Adapter) -> None:
    rows = [row(str(number)) for number in range(MAX_HASHES + 100)]
    write_row_hashes(adapter.folder, rows)
    found = training_row_hashes(adapter)
    assert found == set(sorted(map(row_hash, rows))[:MAX_HASHES])
    assert (adapter.folder / ROW_HASHES).stat().st_size < 66_000


def test_they_go_where_the_adapter_goes(adapter: Adapter, tmp_path: Path) -> None:
    write_row_hashes(adapter.folder, [row("a")])
    bank = Bank.create(tmp_path / "bank")
    assert training_row_hashes(bank.add(adapter.folder)) == {row_hash(row("a"))}
    path = adapter.folder / ROW_HASHES
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="second: expected hashes of its training rows"):
        bank.add(adapter.folder, name="second")


def test_damaged(adapter: Adapter) -> None:
    path = adapter.folder / ROW_HASHES
    write_row_hashes(adapter.folder, [row("a")])
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":"2"'))
    assert training_row_hashes(adapter) is None
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError, match=r"math: expected hashes of its training rows in .*: restore the"):
        training_row_hashes(adapter)
