"""The index is read at once, refused when damaged, and written by one process at a time."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kshot.bank import Bank
from kshot.bank.adapter import AdapterEntry
from kshot.bank.index import FORMAT, INDEX, LOCK, locked, read_index, write_index
from kshot.errors import AdapterError, RunFolderError


def entry(name: str) -> AdapterEntry:
    return AdapterEntry(name=name, r=4, target_modules=("q_proj",), sha256=64 * "0", config_sha256=64 * "1")


def test_roundtrip(tmp_path: Path) -> None:
    write_index(tmp_path, [entry("b"), entry("a")])
    assert [one.name for one in read_index(tmp_path)] == ["a", "b"]
    assert read_index(tmp_path)[1] == entry("b")
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["format"] == FORMAT
    assert index["adapters"][0]["target_modules"] == ["q_proj"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"format": 1, "adapters": [',
            "cannot read .*bank.json: Invalid JSON: EOF while parsing .*; restore it",
        ),
        ("[]", "cannot read .*bank.json: Input should be an object; restore it"),
        ("{}", "cannot read .*bank.json: format: Field required; restore it"),
        (
            '{"format": 1, "adapters": [{"name": "math"}]}',
            "bank.json: adapters.0.r: Field required; restore it",
        ),
        (
            '{"format": 3, "adapters": [{"title": 1}]}',
            "expected format 1 or 2 in .*json, got 3: update kshot",
        ),
        ('{"format": 3, "adapters": []}', "expected format 1 or 2 in .*json, got 3: update kshot"),
    ],
)
def test_damaged(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(AdapterError, match=message):
        Bank.open(tmp_path)


def test_names_that_leave_the_bank_or_repeat(tmp_path: Path) -> None:
    write_index(tmp_path, [entry("math")])
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(index | {"adapters": index["adapters"] * 2}))
    with pytest.raises(AdapterError, match=r"expected distinct adapter names in .*, got math twice; restore"):
        read_index(tmp_path)
    index["adapters"][0]["name"] = "../math"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(AdapterError, match=r"cannot read .*json: adapters.0.name: .*should match pattern"):
        read_index(tmp_path)


def test_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / INDEX).mkdir()
    with pytest.raises(AdapterError, match=r"cannot read .*bank.json: Is a directory; restore it"):
        read_index(tmp_path)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of the bank."""
    lock = repr(str(tmp_path / LOCK))
    code = (
        f"import filelock, time; lock = filelock.FileLock({lock}); lock.acquire(); print(1); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        yield process
        process.kill()


def test_the_lock_of_another_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    write_index(tmp_path, [])
    with (
        pytest.raises(RunFolderError, match=r"another process holds .*\.bank\.lock for 0.1 s: wait for"),
        locked(tmp_path, timeout_s=0.1),
    ):
        pass
    holder.kill()  # as a sync that is killed while it writes
    holder.wait()
    Bank([], tmp_path).record(entry("math"))
    assert [one.name for one in read_index(tmp_path)] == ["math"]


def test_a_bank_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*bank: "), locked(tmp_path / "file" / "bank"):
        pass


def test_large_banks_open_in_seconds(tmp_path: Path) -> None:
    known = entry("name").model_dump(mode="json")
    adapters = [known | {"name": f"adapter-{number}"} for number in range(20_000)]
    (tmp_path / INDEX).write_text(json.dumps({"format": FORMAT, "adapters": adapters}))
    started = time.perf_counter()
    assert len(read_index(tmp_path)) == 20_000
    assert time.perf_counter() - started < 5  # 0.4 s on an idle core
