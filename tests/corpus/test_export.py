"""Rows for other trainers: both forms, both kinds of file, and the Hub."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pa_parquet
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

from kshot.corpus.export import DatasetForm, dataset_rows, push_dataset, write_dataset
from kshot.errors import ConfigError, RunFolderError, SourceError
from kshot.examples import Example, read_examples

EXAMPLES = [
    Example("Translate.", "chat", input="cat", id="a", rationale="Cats are chats.\u2028Yes."),
    Example("Name a colour.", "Röt", choices=("Röt", "Blau"), label=0),
]


def test_forms() -> None:
    assert dataset_rows(EXAMPLES, "alpaca") == [
        {"instruction": "Translate.", "input": "cat", "output": "chat"},
        {"instruction": "Name a colour.", "input": "", "output": "Röt"},
    ]
    assert dataset_rows(EXAMPLES, "messages", rationales=True) == [
        {
            "messages": [
                {"role": "user", "content": "Translate.\n\ncat"},
                {"role": "assistant", "content": "Cats are chats.\u2028Yes.\nchat"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "Name a colour."},
                {"role": "assistant", "content": "Röt"},
            ]
        },
    ]


@pytest.mark.parametrize("form", ["alpaca", "messages"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "ROWS.PARQUET"])
def test_roundtrip_through_our_own_reader(tmp_path: Path, form: DatasetForm, name: str) -> None:
    write_dataset(tmp_path / name, dataset_rows(EXAMPLES, form, rationales=True))
    read = read_examples(tmp_path / name)
    assert [example.request for example in read] == [example.request for example in EXAMPLES]
    assert [example.output for example in read] == ["Cats are chats.\u2028Yes.\nchat", "Röt"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_refuses_another_suffix_and_a_folder_that_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.jsonl or \.parquet, got .*rows\.csv: rename it"):
        write_dataset(tmp_path / "rows.csv", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        write_dataset(tmp_path / "file" / "rows.jsonl", dataset_rows(EXAMPLES, "alpaca"))


class FakeHub:
    """Keeps what is uploaded; has a card or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, card: str | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.made: list[tuple[str, Any]] = []
        self.card = card
        for name in ("create_repo", "hf_hub_download", "upload_folder"):
            monkeypatch.setattr(HfApi, name, getattr(self, name))

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool | None, exist_ok: bool) -> Any:
        assert repo_type == "dataset"
        assert exist_ok
        self.made.append((repo_id, private))
        return SimpleNamespace(repo_id=repo_id)

    def hf_hub_download(self, repo_id: str, name: str, *, repo_type: str, local_dir: Path) -> None:
        if self.card is None:
            raise RemoteEntryNotFoundError("none", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]
        (local_dir / name).write_text(self.card)

    def upload_folder(self, *, repo_id: str, repo_type: str, folder_path: Path, commit_message: str) -> Any:
        assert commit_message == "Upload 2 selected rows"
        self.files = {
            str(path.relative_to(folder_path)): path.read_bytes()
            for path in folder_path.rglob("*")
            if path.is_file()
        }
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


def test_push_makes_a_data_set_with_a_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = FakeHub(monkeypatch)
    rows = dataset_rows(EXAMPLES, "alpaca")
    assert push_dataset("me/rows", rows, card="# Rows", private=True) == "https://hub/me/rows/commit/1"
    assert hub.made == [("me/rows", True)]
    assert hub.files["README.md"] == b"# Rows"
    assert set(hub.files) == {"README.md", "data/train.parquet"}
    (tmp_path / "train.parquet").write_bytes(hub.files["data/train.parquet"])
    assert pa_parquet.read_table(tmp_path / "train.parquet").to_pylist() == rows


def test_push_keeps_a_card_that_somebody_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, card="mine")
    push_dataset("me/rows", dataset_rows(EXAMPLES, "alpaca"), card="# Rows")
    assert hub.files["README.md"] == b"mine"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (HFValidationError("no name"), r"hf://me/rows: expected the name of a repository: no name"),
        (ConnectionError("refused"), r"hf://me/rows: expected a whole answer from the Hub, got: refused"),
    ],
)
def test_what_the_hub_refuses_is_said(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    hub = FakeHub(monkeypatch)

    def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(SourceError, match=message):
        push_dataset("me/rows", dataset_rows(EXAMPLES, "alpaca"), card="")
    assert hub.files == {}


def test_json_lines_hold_letters_as_they_are(tmp_path: Path) -> None:
    write_dataset(tmp_path / "rows.jsonl", dataset_rows(EXAMPLES, "alpaca"))
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1])["output"] == "Röt"
    assert "Röt" in lines[1]
