"""A sync takes in all that can be used, says why the rest cannot, and goes on where it was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import are_progress_bars_disabled

from kshot.bank import AdapterEntry, Bank, Candidate, Limits, Outcome, search_hub, sync_bank
from kshot.bank.hub_errors import HubUnreachableError
from kshot.bank.index import read_index
from kshot.bank.sync import RECORD
from kshot.cli import main
from kshot.errors import ConfigError, RunFolderError

Files = Callable[..., dict[str, bytes]]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return tmp_path / "bank"


@pytest.fixture
def files(adapter_files: Files) -> dict[str, bytes]:
    return adapter_files("one")


def sync(bank: Path, *references: str, **settings: Any) -> dict[str, Outcome]:
    candidates = [Candidate(reference) for reference in references]
    return {one.reference: one for one in sync_bank(Bank.create(bank), candidates, **settings)}


def recorded(bank: Path) -> dict[str, str]:
    return {one["reference"]: one["reason"] for one in json.loads((bank / RECORD).read_text())}


def test_the_good_are_added_and_the_bad_explained(hub: Any, files: dict[str, bytes], bank: Path) -> None:
    settings = json.loads(files[CONFIG])
    hub.add("org/good", files, card={"license": "mit"}, downloads=9)
    hub.add("org/gated", files, card={"license": "mit"}, downloads=8, gated=True)
    hub.add("org/pickle", {CONFIG: b"{}", "adapter_model.bin": b"x"}, card={"license": "mit"}, downloads=7)
    hub.add("org/large", files | {WEIGHTS: bytes(200_000)}, card={"license": "mit"}, downloads=6)
    hub.add("org/llama", files, card={"license": "llama2"}, downloads=5)
    no_lora = json.dumps(settings | {"peft_type": "IA3"}).encode()
    hub.add("org/ia3", files | {CONFIG: no_lora}, card={"license": "mit"}, downloads=4)
    hub.add("org/short", files, card={"license": "mit"}, downloads=3, faults={WEIGHTS: "short"})
    hub.add("org/damaged", files | {WEIGHTS: files[WEIGHTS][:-9]}, card={"license": "mit"}, downloads=2)
    hub.add("else/good", files, card={"license": "MIT"}, downloads=1)
    found = sync_bank(
        Bank.create(bank),
        search_hub("tiny/base"),
        limits=Limits(max_bytes=100_000, licences=("mit",)),
    )
    assert {one.reference.removeprefix("hf://"): one.status for one in found} == {
        "org/good": "added",
        "org/gated": "refused",
        "org/pickle": "refused",
        "org/large": "refused",
        "org/llama": "refused",
        "org/ia3": "refused",
        "org/short": "failed",
        "org/damaged": "refused",
        "else/good": "added",
    }
    assert Bank.open(bank).names == ["else--good", "org--good"]
    assert Bank.open(bank).verify() == {"else--good": None, "org--good": None}
    reasons = recorded(bank)
    assert reasons == {one.reference: one.reason for one in found if one.status != "added"}
    assert "an agreement first" in reasons["hf://org/gated"]
    assert "which is never downloaded" in reasons["hf://org/pickle"]
    assert "expected at most 0.1 MB, got 0.2 MB" in reasons["hf://org/large"]
    assert "expected the licence mit, got llama2" in reasons["hf://org/llama"]
    assert "expected a plain LoRA, got IA3" in reasons["hf://org/ia3"]
    assert "Consistency check failed" in reasons["hf://org/short"]
    assert "expected whole safetensors" in reasons["hf://org/damaged"]
    assert not [path for path in bank.iterdir() if path.name.endswith(".partial")]
    assert not [request for request in hub.requests if "org/llama" in request]


def test_a_second_sync_asks_for_what_is_missing_alone(hub: Any, files: dict[str, bytes], bank: Path) -> None:
    hub.add("org/a", files)
    hub.add("org/b", files | {WEIGHTS: files[WEIGHTS][:-9]})
    hub.add("org/c", files, faults={WEIGHTS: "short"})
    sync(bank, "hf://org/a", "org/b", "org/c")
    hub.repositories["org/c"].faults.clear()
    index = (bank / "bank.json").read_bytes()
    hub.requests.clear()
    found = sync(bank, "hf://org/a", "org/b", "org/c")
    assert [one.status for one in found.values()] == ["kept", "refused", "added"]
    assert not [request for request in hub.requests if "org/a" in request]
    assert hub.fetched("org/b") == []  # the same files of the same commit
    assert "expected whole safetensors" in recorded(bank)["org/b"]
    assert "org/c" not in recorded(bank)
    assert (bank / "bank.json").read_bytes() != index
    hub.add("org/b", files | {"README.md": b"mended"})
    assert sync(bank, "org/b")["org/b"].status == "added"
    assert recorded(bank) == {}
    index = (bank / "bank.json").read_bytes()
    assert {one.status for one in sync(bank, "org/a", "org/b", "org/c").values()} == {"kept"}
    assert (bank / "bank.json").read_bytes() == index


def test_another_version_looks_at_refused_files_again(hub: Any, files: dict[str, bytes], bank: Path) -> None:
    hub.add("org/b", files | {WEIGHTS: files[WEIGHTS][:-9]})
    sync(bank, "org/b")
    record = json.loads((bank / RECORD).read_text())
    (bank / RECORD).write_text(json.dumps([record[0] | {"kshot": "0.0.1"}]))
    hub.requests.clear()
    assert sync(bank, "org/b")["org/b"].status == "refused"
    assert WEIGHTS in hub.fetched("org/b")


def test_the_same_name_twice(hub: Any, files: dict[str, bytes], lora_folder: Any, bank: Path) -> None:
    old = hub.add("org/sql", files).commit
    hub.add("else/sql", files)
    found = sync(bank, "org/sql", "else/sql", "hf://org/sql", "org/sql@main", f"org/sql@{old}")
    assert [one.status for one in found.values()] == ["added", "added", "kept", "kept", "kept"]
    hub.add("org/sql", files | {"README.md": b"new"})
    other = f"org/sql@{hub.repositories['org/sql'].commit}"
    assert "the bank holds it as org--sql, from hf://org/sql@" in str(sync(bank, other)[other].reason)
    Bank.open(bank).add(lora_folder("mine"), name="third--sql")
    hub.add("third/sql", files)
    assert "got 'third--sql', which the bank holds from elsewhere" in str(
        sync(bank, "third/sql")["third/sql"].reason
    )
    Bank.open(bank).add("third/sql", name="renamed")
    assert sync(bank, "third/sql")["third/sql"].status == "kept"


def test_folders_in_a_list(lora_folder: Any, hub: Any, bank: Path, tmp_path: Path) -> None:
    good = str(lora_folder("good"))
    (tmp_path / "bad").mkdir()
    found = sync(bank, good, str(tmp_path / "bad"), "none", good)
    assert [one.status for one in found.values()] == ["kept", "refused", "refused"]
    assert "expected a PEFT adapter folder with adapter_config.json" in str(
        found[str(tmp_path / "bad")].reason
    )
    assert "expected an adapter folder or hf://owner/name" in str(found["none"].reason)
    assert Bank.open(bank).names == ["good"]


def test_limit_counts_what_is_in_the_bank(hub: Any, files: dict[str, bytes], bank: Path) -> None:
    for name in "abcd":
        hub.add(f"org/{name}", files, gated=name == "a")
    names = [f"org/{name}" for name in "abcd"]
    for _ in range(2):
        assert list(sync(bank, *names, limit=2)) == ["org/a", "org/b", "org/c"]
        assert Bank.open(bank).names == ["org--b", "org--c"]
    with pytest.raises(ConfigError, match="limit must be at least 1, got 0"):
        sync(bank, *names, limit=0)


def test_a_dead_network_stops_it(
    hub: Any, no_hub: Callable[[], None], files: dict[str, bytes], bank: Path
) -> None:
    hub.add("org/a", files)
    sync(bank, "org/a")
    no_hub()
    names = [f"org/{name}" for name in "abcdefg"]
    with pytest.raises(
        HubUnreachableError, match=r"org/d: .*refused.*; 1 adapters are in the bank, 3 were not asked for"
    ):
        sync(bank, *names)
    assert sorted(recorded(bank)) == ["org/b", "org/c", "org/d"]
    assert not are_progress_bars_disabled()


def test_a_damaged_record(bank: Path) -> None:
    bank.mkdir()
    (bank / RECORD).write_text("[{}]")
    with pytest.raises(RunFolderError, match=r"cannot read .*sync.json: .*; delete it, it is made again"):
        sync(bank, "org/a")


def test_the_index_is_not_written_for_each_adapter_of_a_large_bank(
    hub: Any, files: dict[str, bytes], bank: Path
) -> None:
    written: list[int] = []

    class LargeBank(Bank):
        def record(self, *entries: AdapterEntry) -> None:
            super().record(*entries)
            written.append(len(entries))
            time.sleep(0.5)  # as for 50,000 adapters

    for number in range(4):
        hub.add(f"org/{number}", files)
    sync_bank(LargeBank.create(bank), [Candidate(f"org/{number}") for number in range(4)])
    assert written == [1, 3]
    assert len(Bank.open(bank)) == 4


SYNC = """
import sys
from pathlib import Path
from kshot.bank import Bank, search_hub, sync_bank
sync_bank(Bank.create(Path(sys.argv[1])), search_hub("tiny/base"))
"""


def test_a_killed_sync_goes_on(
    hub: Any, files: dict[str, bytes], bank: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The first one is killed in its own process, which finds the server as users do: through HF_ENDPOINT."""
    names = [f"org--{number:02}" for number in range(12)]
    for name in names:
        hub.add(name.replace("--", "/"), files, downloads=ord(name[-1]))
    hub.delay_s = 0.05
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    process = subprocess.Popen(
        [sys.executable, "-c", SYNC, str(bank)],
        env=environment | {"HF_ENDPOINT": hub.address, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (bank / "bank.json").is_file() or len(read_index(bank)) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = Bank.open(bank)
    assert 3 <= len(held) < 12
    assert set(held.verify().values()) == {None}
    hub.requests.clear()
    hub.delay_s = 0.0
    code, out, _ = run(monkeypatch, capsys, "sync", str(bank), "--base-model", "tiny/base", "--json")
    assert code == 0
    rows = json.loads(out)
    assert {row["reference"] for row in rows if row["status"] == "kept"} == {
        adapter.entry.origin.partition("@")[0] for adapter in held
    }
    assert Bank.open(bank).names == names
    assert set(Bank.open(bank).verify().values()) == {None}
    assert not [name for name in held.names if hub.fetched(name.replace("--", "/"))]
    assert not [path for path in bank.iterdir() if path.name.endswith(".partial")]


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["kshot", "bank", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, " ".join(captured.err.split())


def test_commands(
    hub: Any, files: dict[str, bytes], bank: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    hub.add("org/a", files, card={"license": "mit"})
    hub.add("org/b", files, faults={WEIGHTS: "short"})
    (tmp_path / "list.txt").write_text("org/a\norg/b\n")
    arguments = ["sync", str(bank), "--list", str(tmp_path / "list.txt")]
    code, out, _ = run(monkeypatch, capsys, *arguments, "--licence", "mit, apache-2.0")
    assert code == 0
    assert "1 added, 0 there before" in out
    assert "1 refused, 0 failed" in out
    code, out, _ = run(monkeypatch, capsys, *arguments, "--json")
    assert code == 2  # what failed may work the next time
    assert [row["status"] for row in json.loads(out)] == ["kept", "failed"]
    assert run(monkeypatch, capsys, "add", str(bank), "hf://org/a", "--name", "a", "--licence", "x")[0] == 0
    assert Bank.open(bank)["a"].entry.licence == "x"
    code, out, _ = run(monkeypatch, capsys, "list", "hf://org/a", "--json")
    assert [entry["name"] for entry in json.loads(out)] == ["org--a"]
    code, out, _ = run(monkeypatch, capsys, "index", str(bank))
    assert (code, out) == (0, "0 adapters completed\n")
    assert run(monkeypatch, capsys, "verify", str(bank))[1] == "2 adapters are sound\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sync", "b"], "expected either --base-model or --list, got both or neither: give one"),
        (["sync", "b", "--base-model", "a/b", "--list", "x"], "expected either --base-model or --list"),
        (
            ["sync", "b", "--list", "x", "--search", "y"],
            "--search narrows --base-model, and a list was given",
        ),
        (
            ["sync", "b", "--base-model", "a/b", "--max-size", "5"],
            "expected a size such as 200MB or 1.5GB, got '5'",
        ),
        (["sync", "b", "--base-model", "a/b"], "expected adapters of a/b on the Hub, got none"),
        (["add", "b", "org/none"], "hf://org/none: the Hub has no such repository"),
    ],
)
def test_mistakes(
    hub: Any, tmp_path: Path, monkeypatch: Any, capsys: Any, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in said
    assert not (tmp_path / "b").exists()


def test_outcomes_survive_the_record(bank: Path) -> None:
    bank.mkdir()
    past = Outcome("org/a", "refused", "because", "0" * 40, "0.1.0")
    (bank / RECORD).write_text(json.dumps([asdict(past)]))
    sync(bank)
    assert json.loads((bank / RECORD).read_text()) == [asdict(past)]
