"""A cache folder of its own for every test, and files of open rows."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

WriteRows = Callable[..., Path]


@pytest.fixture(autouse=True)
def kshot_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder."""
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Writes rows, or texts as rows whose output is the text in capitals, to a .jsonl file."""

    def write(name: str, rows: Sequence[dict[str, Any] | str]) -> Path:
        path = tmp_path / name
        whole = [{"instruction": row, "output": row.upper()} if isinstance(row, str) else row for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in whole))
        return path

    return write
