"""Selected rows as a data set that other trainers read: Alpaca or chat messages, a file or a Hub data set."""

import io
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pa_parquet  # type: ignore[import-untyped]
from huggingface_hub import HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError

from kshot.atomic import write_bytes, write_text
from kshot.bank.hub_errors import explained
from kshot.errors import ConfigError
from kshot.examples import Example
from kshot.prompts import target_of

DatasetForm = Literal["alpaca", "messages"]
SUFFIXES = (".jsonl", ".parquet")
_CARD = "README.md"
_ON_HUB = "data/train.parquet"


def dataset_rows(
    examples: Sequence[Example], form: DatasetForm, *, rationales: bool = False
) -> list[dict[str, Any]]:
    """Return examples in a form that trainers know.

    Args:
        examples: The rows.
        form: `alpaca`: instruction, input and output; `messages`: a user turn and an assistant turn.
        rationales: Put the rationale, where there is one, before the output.
    """
    outputs = [target_of(example, "instruction", rationale=rationales) for example in examples]
    if form == "alpaca":
        return [
            {"instruction": example.instruction, "input": example.input, "output": output}
            for example, output in zip(examples, outputs, strict=True)
        ]
    return [
        {"messages": [_turn("user", example.request), _turn("assistant", output)]}
        for example, output in zip(examples, outputs, strict=True)
    ]


def check_target(path: Path) -> None:
    """Refuse a file that is neither JSON lines nor Parquet, before there is anything to write.

    Raises:
        ConfigError: Its suffix is not known.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"expected a file that ends in {' or '.join(SUFFIXES)}, got {path}: rename it")


def write_dataset(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of `dataset_rows` as JSON lines or Parquet, by the suffix, in one rename.

    Raises:
        ConfigError: The suffix is not known.
        RunFolderError: The file cannot be written.
    """
    check_target(path)
    if path.suffix.lower() == ".parquet":
        write_bytes(path, _parquet(rows))
    else:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def push_dataset(
    repo_id: str,
    rows: Sequence[dict[str, Any]],
    *,
    card: str,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Put rows of `dataset_rows` into a Hub data set, which is made if missing.

    A card that somebody wrote in the repository is kept.

    Args:
        repo_id: `owner/name`.
        rows: Become the split `train`.
        card: Text of the card of a new data set.
        private: Of a data set that is made; None: as the organisation sets it.
        token: Of the Hub; None: the stored one.

    Returns:
        The commit's address.

    Raises:
        SourceError: The Hub refuses, or cannot be reached.
    """
    api = HfApi(token=token)
    with explained(f"hf://{repo_id}"):
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as name:
            folder = Path(name)
            with suppress(RemoteEntryNotFoundError):
                api.hf_hub_download(repo_id, _CARD, repo_type="dataset", local_dir=folder)
            if not (folder / _CARD).is_file():
                write_text(folder / _CARD, card)
            write_bytes(folder / _ON_HUB, _parquet(rows))
            commit = api.upload_folder(
                repo_id=repo_id,
                repo_type="dataset",
                folder_path=folder,
                commit_message=f"Upload {len(rows)} selected rows",
            )
    return str(commit.commit_url)


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pa_parquet.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
