"""`kshot pool`: build, add, info, search, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from kshot.cli import app
from kshot.errors import ConfigError, SourceError

from ..word_encoder import write_word_encoder

WORDS = ["red", "green", "blue", "one", "two", "three"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    vectors_WD = np.vstack([np.zeros(6), np.eye(6), np.eye(6)])
    folder = tmp_path_factory.mktemp("encoder") / "colours"
    return str(write_word_encoder(folder, [*WORDS, *map(str.upper, WORDS)], vectors_WD))


def _pool(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["pool", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_build_add_info_and_search(tmp_path: Path, write_rows, encoder: str) -> None:
    write_rows("colours.jsonl", [*WORDS[:3], {"output": "x"}])
    numbers = [{"question": word, "answer": word.upper()} for word in WORDS[3:]]
    write_rows("numbers.jsonl", numbers)
    pool = str(tmp_path / "pool")
    built = _pool("build", pool, str(tmp_path / "colours.jsonl"), "--encoder", encoder)
    assert (built["rows"], built["sources"]) == (3, {"colours": 3})
    columns = ("--column", "instruction=question", "--column", "output=answer")
    added = _pool("add", pool, str(tmp_path / "n*.jsonl"), *columns, "--limit", "2")
    assert added["sources"] == {"colours": 3, "numbers": 2}
    assert _pool("info", pool) == added
    assert [(one["source"], one["reason"], one["count"]) for one in added["skipped"]] == [
        ("colours", "no_instruction", 1)
    ]
    ((name, shards),) = added["encoders"].items()
    assert (name.split()[0], shards) == ("colours", 2)
    found = _pool("search", pool, "two green green", "--top", "2")
    assert [(row["source"], row["example"]["instruction"]) for row in found] == [
        ("colours", "green"),
        ("numbers", "two"),
    ]


def test_tables_for_people(tmp_path: Path, write_rows, encoder: str) -> None:
    write_rows("colours.jsonl", [*WORDS[:3], WORDS[0]])
    pool = str(tmp_path / "pool")
    built = CliRunner().invoke(app, ["pool", "build", pool, f"{tmp_path}/*.jsonl", "--encoder", encoder])
    assert "3 rows" in built.stdout
    assert "1 exact_duplicate" in " ".join(built.stdout.split())
    found = CliRunner().invoke(app, ["pool", "search", pool, "red"])
    assert "1.000" in found.stdout
    assert "RED" in found.stdout


def test_a_pool_is_not_built_twice(tmp_path: Path, write_rows, encoder: str) -> None:
    path = str(write_rows("a.jsonl", WORDS))
    _pool("build", str(tmp_path / "pool"), path, "--encoder", encoder)
    with pytest.raises(ConfigError, match=r"expected a new pool, got .*, which is one: use 'kshot pool add'"):
        _pool("build", str(tmp_path / "pool"), path, "--encoder", encoder)


def test_a_source_with_a_mistake_is_not_listed(tmp_path: Path, write_rows, encoder: str) -> None:
    pool = str(tmp_path / "pool")
    _pool("build", pool, str(write_rows("a.jsonl", WORDS)), "--encoder", encoder)
    before = (tmp_path / "pool" / "pool.json").read_bytes()
    with pytest.raises(SourceError, match="expected a file at"):
        _pool("add", pool, str(tmp_path / "missing.jsonl"))
    assert (tmp_path / "pool" / "pool.json").read_bytes() == before


@pytest.mark.parametrize("column", ["instruction", "instr=question", "instruction="])
def test_a_wrong_column_is_refused(tmp_path: Path, column: str) -> None:
    with pytest.raises(ConfigError, match="expected --column FIELD=COLUMN with a FIELD of instruction"):
        _pool("build", str(tmp_path / "pool"), "a.jsonl", "--column", column)


@pytest.mark.parametrize("command", ["build", "add"])
def test_an_address_without_ray_is_refused(tmp_path: Path, write_rows, encoder: str, command: str) -> None:
    pool, path = str(tmp_path / "pool"), str(write_rows("a.jsonl", WORDS))
    if command == "add":
        _pool("build", pool, path, "--encoder", encoder)
    with pytest.raises(ConfigError, match="expected no address with the engine local, got 'auto'"):
        _pool(command, pool, path, "--address", "auto")


def test_a_url_is_listed_as_it_is(tmp_path: Path, write_rows, encoder: str) -> None:
    write_rows("a.jsonl", WORDS)
    url = f"file://{tmp_path}/*.jsonl"
    assert _pool("build", str(tmp_path / "pool"), url, "--encoder", encoder)["rows"] == 6
    listed = json.loads((tmp_path / "pool" / "pool.json").read_text())["sources"]
    assert [source["path"] for source in listed] == [url]


@pytest.mark.parametrize("command", ["build", "add", "info", "search"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, ["pool", command, "--help"])
    assert result.exit_code == 0
    assert f"Example: kshot pool {command}" in " ".join(result.output.split())
