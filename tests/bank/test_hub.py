"""An adapter of the Hub is judged before it is downloaded, and what is downloaded is what the Hub said."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelInfo

from kshot.bank import Bank, Limits
from kshot.bank.hub import HubReference, fetch, licence_of, look_up
from kshot.bank.hub_errors import HubUnreachableError
from kshot.errors import AdapterError, ConfigError, KshotError, RunFolderError, SourceError

Files = Callable[..., dict[str, bytes]]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("hf://org/name", "org/name", None),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("hf://Org-1/lora_7b.x@refs/pr/1", "Org-1/lora_7b.x", "refs/pr/1"),
    ],
)
def test_references(text: str, repo: str, revision: str | None) -> None:
    found = HubReference.parse(text)
    assert found == HubReference(repo, revision)
    assert str(found) == f"hf://{repo}" + (f"@{revision}" if revision else "")
    assert found.name == repo.replace("/", "--")


@pytest.mark.parametrize("text", ["name", "a/b/c", "../a/b", "hf://a", "a/b@", "a b/c", "/a/b", "hf:///a/b"])
def test_what_is_no_reference(text: str) -> None:
    assert HubReference.parse(text) is None


def test_add_pins_the_commit(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    files = adapter_files("sql", r=2) | {
        "LICENSE": b"MIT ...",
        "optimizer.pt": b"x",
        "adapter_model.bin": b"x",
    }
    card = {"license": "mit", "datasets": ["org/questions", "org/tables"]}
    commit = hub.add("org/sql", files, card=card).commit
    bank = Bank.create(tmp_path / "bank")
    for source, name in [
        ("hf://org/sql", None),
        ("org/sql@main", "by-branch"),
        (f"org/sql@{commit}", "by-commit"),
    ]:
        entry = bank.add(source, name=name).entry
        assert entry.origin == f"hf://org/sql@{commit}"
        assert (entry.licence, entry.trained_on, entry.r) == ("mit", "org/questions, org/tables", 2)
    assert Bank.open(tmp_path / "bank").names == ["by-branch", "by-commit", "org--sql"]
    kept = {path.name: path.read_bytes() for path in (tmp_path / "bank" / "org--sql").iterdir()}
    kept.pop("fingerprint.safetensors")
    assert kept == {name: files[name] for name in (CONFIG, WEIGHTS, "README.md", "LICENSE")}
    assert set(hub.fetched()) == set(kept)
    assert set(bank.verify().values()) == {None}


def test_origin_of_the_factors(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    commit = hub.add("org/sql", adapter_files("sql"), card={"license": "mit"}).commit
    expert = Bank.create(tmp_path / "bank").add("org/sql").load()
    assert expert.origin is not None
    assert (expert.origin["source"], expert.origin["licence"]) == (f"org/sql@{commit}", "mit")


def test_a_folder_goes_before_the_hub(lora_folder: Any, hub: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "org").mkdir()
    lora_folder("sql").rename(tmp_path / "org" / "sql")
    monkeypatch.chdir(tmp_path)
    assert Bank.create(Path("bank")).add("org/sql").name == "sql"
    with pytest.raises(SourceError, match="hf://org/sql: the Hub has no such repository"):
        Bank.create(Path("bank")).add("hf://org/sql")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, "unknown"),
        ({}, "unknown"),
        ({"license": "apache-2.0"}, "apache-2.0"),
        ({"license": ["mit", "apache-2.0"]}, "mit, apache-2.0"),
        ({"license": "other", "license_name": "gemma"}, "gemma"),
        ({"license": "other"}, "other"),
        ({"license": 3}, "unknown"),
    ],
)
def test_licence_of_a_card(card: dict[str, Any] | None, licence: str) -> None:
    assert licence_of(ModelInfo(id="a/b", cardData=card)) == licence


def refused(bank: Path, source: str, kind: type[KshotError], match: str, **settings: Any) -> None:
    """Check that adding fails so, and leaves nothing behind."""
    with pytest.raises(kind, match=match):
        Bank.create(bank).add(source, **settings)
    assert (
        not bank.exists() or [path.name for path in bank.iterdir() if not path.name.startswith(".bank")] == []
    )


def test_no_such_repository_or_revision(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    refused(
        tmp_path / "bank", "org/none", SourceError, "hf://org/none: the Hub has no such repository, or it is"
    )
    hub.add("org/sql", adapter_files("sql"))
    refused(tmp_path / "bank", "org/sql@v9", SourceError, "hf://org/sql@v9: the Hub has no such revision")
    refused(
        tmp_path / "bank",
        "org/a--b",
        SourceError,
        "org/a--b: expected the name of a repository: Cannot have --",
    )
    refused(
        tmp_path / "bank", "none", SourceError, "expected an adapter folder or hf://owner/name.* got 'none'"
    )
    refused(tmp_path / "bank", "org/sql", ConfigError, "expected a name of letters.* got '7'", name="7")


def test_gated(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    hub.add("org/sql", adapter_files("sql"), gated=True)
    refused(
        tmp_path / "bank", "org/sql", SourceError, "expected leave to read it, its owner wants an agreement"
    )


def test_connection_refused(no_hub: Callable[[], None], hub: Any, tmp_path: Path) -> None:
    no_hub()
    refused(
        tmp_path / "bank",
        "org/sql",
        HubUnreachableError,
        "expected a whole answer from the Hub, got: .*refused",
    )


def test_offline(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(tmp_path / "bank", "org/sql", HubUnreachableError, "offline mode is enabled")


def test_pickles_are_never_downloaded(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    config = adapter_files("sql")[CONFIG]
    hub.add("org/sql", {CONFIG: config, "adapter_model.bin": b"pickle"})
    refused(
        tmp_path / "bank",
        "org/sql",
        AdapterError,
        "expected a PEFT adapter with adapter_model.safetensors, got only adapter_model.bin, which is never",
    )
    hub.add("org/model", {"config.json": b"{}", "model.safetensors": b"x"})
    refused(
        tmp_path / "bank",
        "org/model",
        AdapterError,
        "with adapter_model.safetensors, got none: ask its owner",
    )
    hub.add("org/bare", {WEIGHTS: b"x"})
    refused(tmp_path / "bank", "org/bare", AdapterError, "with adapter_config.json, got none")
    assert hub.fetched() == []


def test_too_large(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    hub.add("org/sql", adapter_files("sql") | {WEIGHTS: bytes(300_000)})
    refused(
        tmp_path / "bank",
        "org/sql",
        AdapterError,
        r"hf://org/sql: expected at most 0.1 MB, got 0.3 MB: raise --max-size",
        limits=Limits(max_bytes=100_000),
    )
    assert hub.fetched() == []


def test_licence_not_allowed(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    hub.add("org/sql", adapter_files("sql"), card={"license": "llama2"})
    hub.add("org/bare", adapter_files("bare"))
    limits = Limits(licences=("apache-2.0", "MIT"))
    refused(
        tmp_path / "bank",
        "org/sql",
        AdapterError,
        "expected the licence apache-2.0 or MIT, got llama2: allow it with --licence",
        limits=limits,
    )
    refused(tmp_path / "bank", "org/bare", AdapterError, "got unknown: allow it", limits=limits)
    assert hub.fetched() == []
    hub.add("org/mit", adapter_files("mit"), card={"license": "mit"})
    assert Bank.create(tmp_path / "bank").add("org/mit", limits=limits).entry.licence == "mit"


def test_another_kind_is_refused_by_its_settings(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    files = adapter_files("sql")
    config = json.loads(files[CONFIG])
    hub.add("org/prompt", files | {CONFIG: json.dumps(config | {"peft_type": "PROMPT_TUNING"}).encode()})
    hub.add("org/dora", files | {CONFIG: json.dumps(config | {"use_dora": True}).encode()})
    hub.add("org/damaged", files | {CONFIG: b"{"})
    refused(tmp_path / "bank", "org/prompt", AdapterError, r"^hf://org/prompt@\w+: expected peft_type LORA")
    refused(
        tmp_path / "bank", "org/dora", AdapterError, r"^hf://org/dora@\w+: expected a plain LoRA, got DORA"
    )
    refused(
        tmp_path / "bank", "org/damaged", AdapterError, r"^hf://org/damaged@\w+/adapter_config.json: expected"
    )
    assert set(hub.fetched()) == {CONFIG}


def test_damaged_weights(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    files = adapter_files("sql")
    hub.add("org/sql", files | {WEIGHTS: files[WEIGHTS][:-10]})
    refused(
        tmp_path / "bank",
        "org/sql",
        AdapterError,
        r"^hf://org/sql@\w+/adapter_model.safetensors: expected whole safetensors",
    )


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_wrong_checksum(hub: Any, adapter_files: Files, tmp_path: Path, file: str) -> None:
    hub.add("org/sql", adapter_files("sql"), faults={file: "changed"})
    refused(
        tmp_path / "bank",
        "org/sql",
        SourceError,
        rf"hf://org/sql@\w+, {file}: expected checksum \w+... as the Hub says, got \w+...: fetch it again",
    )


def test_short_download(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    hub.add("org/sql", adapter_files("sql"), faults={WEIGHTS: "short"})
    refused(tmp_path / "bank", "org/sql", HubUnreachableError, "Consistency check failed")


def test_a_broken_connection_is_resumed(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    hub.add("org/sql", adapter_files("sql"), faults={WEIGHTS: "cut"})
    bank = Bank.create(tmp_path / "bank")
    bank.add("org/sql")
    assert hub.fetched().count(WEIGHTS) == 2
    assert bank.verify() == {"org--sql": None}


def test_full_disk(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    hub.add("org/sql", adapter_files("sql") | {WEIGHTS: bytes(300_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no file may grow larger
    try:
        refused(tmp_path / "bank", "org/sql", RunFolderError, r"cannot store hf://org/sql@.*File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_is_gone(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    hub.add("org/sql", adapter_files("sql"), faults={WEIGHTS: "gone"})
    refused(tmp_path / "bank", "org/sql", SourceError, "hf://org/sql@.*: the Hub refused: 404")


def test_a_busy_hub_is_asked_again(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    hub.add("org/sql", adapter_files("sql"))
    hub.busy += [429, 503, 500]
    assert look_up(HubReference("org/sql"), Limits(), HfApi()).repo == "org/sql"
    assert len(hub.requests) == 4
    hub.busy += [429] * 4
    refused(tmp_path / "bank", "org/sql", HubUnreachableError, "got: 429")


def test_a_hub_that_tells_no_checksums(
    hub: Any, adapter_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/sql", adapter_files("sql"))
    monkeypatch.setattr(hub, "info", lambda name, blobs, told=hub.info: told(name, blobs=False))
    with pytest.raises(SourceError, match="expected commit, sizes and checksums from the Hub, got none"):
        look_up(HubReference("org/sql"), Limits(), HfApi())


def test_fetch_leaves_no_notes_of_the_client(hub: Any, adapter_files: Files, tmp_path: Path) -> None:
    hub.add("org/sql", adapter_files("sql"))
    fetch(look_up(HubReference("org/sql"), Limits(), HfApi()), tmp_path / "sql", HfApi())
    assert {path.name for path in (tmp_path / "sql").iterdir()} == {CONFIG, WEIGHTS, "README.md"}
