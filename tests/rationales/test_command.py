"""`kshot rationales`: what is written, what is said, and that a mistake is one line and writes nothing."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kshot.cli import app, main

from ..endpoint.server import Reply, fails
from .conftest import ChatServer, says

ROWS = [
    {
        "id": f"sum-{n}",
        "instruction": f"What is {n} + {n}?",
        "output": f"The answer is {2 * n}.",
        "answer": str(2 * n),
    }
    for n in range(4)
]
KEY = "sk-very-secret"


def _right(request: dict[str, Any], number: int) -> Reply:
    n = int(request["messages"][0]["content"].partition("What is ")[2].split()[0])
    return says(f"Answer: {2 * n}\nTwice {n} is {2 * n}.")


@pytest.fixture
def folder(tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    server.reply = _right
    return tmp_path


def _arguments(folder: Path, server: ChatServer, *more: str) -> list[str]:
    files = [str(folder / "shots.jsonl"), "--out", str(folder / "out.jsonl")]
    endpoint = ["--endpoint", server.url, "--model", "m", "--scorer", "number", "--retries", "0"]
    return ["rationales", *files, *endpoint, *more]


def _run(folder: Path, server: ChatServer, *more: str) -> str:
    result = CliRunner().invoke(app, _arguments(folder, server, *more))
    assert result.exit_code == 0, result.output
    return result.stdout


def _error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> str:
    monkeypatch.setattr("sys.argv", ["kshot", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out == ""
    (error,) = [line for line in said.err.splitlines() if "rationales, attempt" not in line and line.strip()]
    assert error.startswith("error: ")
    return error


def _no_file_of(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} <= {"shots.jsonl", "home"}


def test_rows_and_provenance_are_written(folder: Path, server: ChatServer) -> None:
    said = _run(folder, server, "--price-in", "2.5", "--price-out", "10")
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert rows == [row | {"rationale": f"Twice {n} is {2 * n}."} for n, row in enumerate(ROWS)]
    provenance = json.loads((folder / "out.jsonl.provenance.json").read_text())
    assert provenance["writer"] == {"model": "m", "endpoint": server.url}
    assert (provenance["scorer"], provenance["style"], provenance["accepted"]) == (
        "number",
        "answer-first",
        4,
    )
    assert "4 rationales written, 0 rows had one, 0 stay without" in said
    assert "4 answers made, 0 from the cache: 160 tokens in, 48 out, cost 0.0009" in said


def test_the_key_is_nowhere(folder: Path, server: ChatServer) -> None:
    said = _run(folder, server)
    assert server.keys == [f"Bearer {KEY}"] * 4
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 3 + 4  # shots, rows, provenance and an answer each
    assert KEY not in said + "".join(path.read_text() for path in files)


def test_some_are_turned_down(folder: Path, server: ChatServer) -> None:
    server.reply = lambda request, number: says("Answer: 2\nOne and one.")
    said = _run(folder, server, "--attempts", "2")
    assert "1 rationales written, 0 rows had one, 3 stay without" in said
    assert "  sum-2: another answer than the right one\n" in said
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert rows == [ROWS[0], ROWS[1] | {"rationale": "One and one."}, *ROWS[2:]]


def test_output_for_programs(folder: Path, server: ChatServer) -> None:
    found = json.loads(_run(folder, server, "--json"))
    assert (found["accepted"], found["rejected"], found["usage"]["tokens_in"]) == (4, 0, 160)
    assert found["usage"]["cost"] is None
    assert [row["id"] for row in found["rows"]] == [row["id"] for row in ROWS]


def test_the_same_again_asks_nothing(folder: Path, server: ChatServer) -> None:
    _run(folder, server)
    files = {path: path.read_bytes() for path in folder.glob("out.jsonl*")}
    assert "0 answers made, 4 from the cache: 0 tokens in, 0 out" in _run(folder, server, "--force")
    assert {path: path.read_bytes() for path in folder.glob("out.jsonl*")} == files
    _run(folder, server, "--force", "--cache", str(folder / "other"))
    assert len(server.requests) == 8


def test_rows_that_have_one(folder: Path, server: ChatServer) -> None:
    rows = [row | {"rationale": "Mine."} for row in ROWS]
    (folder / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "0 rationales written, 4 rows had one, 0 stay without" in _run(folder, server)
    assert [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()] == rows
    assert server.requests == []


def test_a_prompt_of_ones_own(folder: Path, server: ChatServer) -> None:
    (folder / "own.txt").write_text("Solve: {{ question }}\nShow steps. End with 'Answer: ...'.")
    server.reply = lambda request, number: says("I add.\nAnswer: 2")
    _run(folder, server, "--prompt", str(folder / "own.txt"), "--style", "reason-first", "--attempts", "1")
    assert server.requests[0]["messages"][0]["content"].startswith("Solve: What is ")
    provenance = json.loads((folder / "out.jsonl.provenance.json").read_text())
    assert provenance["prompt"].startswith("Solve: {{ question }}")


def test_a_local_model(
    folder: Path, tiny_model_folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["rationales", str(folder / "shots.jsonl"), "--out", str(folder / "out.jsonl")]
    model = [
        "--model",
        str(tiny_model_folder),
        "--device",
        "cpu",
        "--max-new-tokens",
        "4",
        "--scorer",
        "number",
    ]
    error = _error(capsys, monkeypatch, [*arguments, *model])
    assert "got none for 4 rows (cut off at the token limit: " in error
    _no_file_of(folder)


ENDPOINT_FAULTS = [
    (fails(401, KEY), [], "expected an API key that"),
    (fails(429, "quota"), [], "are used up: 429 quota"),
    (fails(500, "oh"), [], "got: 500 oh; check the endpoint"),
    (Reply(b"{nonsense"), [], "expected JSON from"),
    (Reply({"choices": []}), [], "expected a chat completion from"),
    (says(""), [], "got none for 4 rows (an empty answer: 4); the answer to sum-0 was ''"),
    (says("It is 4."), [], "(no answer line: 4); the answer to sum-0 was 'It is 4.'"),
    (says("x"), ["--endpoint", "http://127.0.0.1:1/v1"], "cannot reach http://127.0.0.1:1/v1"),
    (
        says("x"),
        ["--endpoint", "http://no-such-host.invalid/v1"],
        "cannot reach http://no-such-host.invalid/v1",
    ),
    (says("x"), ["--endpoint", "nowhere"], "expected an endpoint such as"),
    (says("x"), ["--api-key-env", "NOT_SET"], "expected an API key in the environment variable NOT_SET"),
    (says("x"), ["--dtype", "float16"], "--dtype is for a local model; leave it, or --endpoint, out"),
    (says("x"), ["--scorer", "bleu"], "scorer of generated text must be one of"),
    (says("x"), ["--scorer", "multiple_choice"], "sum-0: expected choices and label"),
    (says("x"), ["--style", "both"], "style must be one of"),
    (says("x"), ["--prompt", "none.txt"], "cannot read none.txt"),
    (says("x"), ["--concurrency", "0"], "concurrency must be at least 1"),
    (says("x"), ["--requests-per-minute", "0"], "requests_per_minute must be above 0"),
    (says("x"), ["--attempts", "0"], "attempts must be at least 1"),
]


@pytest.mark.parametrize(("reply", "more", "message"), ENDPOINT_FAULTS)
def test_a_mistake_is_one_line_and_writes_nothing(
    folder: Path,
    server: ChatServer,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
    reply: Reply,
    more: list[str],
    message: str,
) -> None:
    server.reply = lambda request, number: reply
    error = _error(capsys, monkeypatch, _arguments(folder, server, *more))
    assert message in error
    assert KEY not in error
    _no_file_of(folder)


def test_a_slow_endpoint(folder: Path, server: ChatServer, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply = lambda request, number: time.sleep(0.4) or says("x")
    error = _error(capsys, monkeypatch, _arguments(folder, server, "--timeout-s", "0.05"))
    assert "in time, got none; raise --timeout-s" in error
    _no_file_of(folder)


@pytest.mark.parametrize(
    "settings", [["--price-in", "1"], ["--requests-per-minute", "5"], ["--retries", "1"]]
)
def test_settings_for_an_endpoint_need_one(folder: Path, capsys, monkeypatch, settings: list[str]) -> None:
    arguments = [
        "rationales",
        str(folder / "shots.jsonl"),
        "--out",
        str(folder / "out.jsonl"),
        "--model",
        "none",
    ]
    error = _error(capsys, monkeypatch, [*arguments, *settings])
    assert f"{settings[0]} is for an endpoint; add --endpoint URL" in error


def test_a_local_model_that_is_not_there(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["rationales", str(folder / "shots.jsonl"), "--out", str(folder / "out.jsonl")]
    assert "no such folder" in _error(capsys, monkeypatch, [*arguments, "--model", str(folder / "none")])
    _no_file_of(folder)


def test_places_that_cannot_be_written(
    folder: Path, server: ChatServer, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out.jsonl").write_text("kept")
    assert "which exists; add --force" in _error(capsys, monkeypatch, _arguments(folder, server))
    under_a_file = ["--out", str(folder / "out.jsonl" / "deep.jsonl")]
    assert "out.jsonl is a file" in _error(capsys, monkeypatch, _arguments(folder, server, *under_a_file))
    assert (folder / "out.jsonl").read_text() == "kept"
    assert server.requests == []


@pytest.fixture
def _interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # runners of tests may ignore it
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_interrupted_it_ends_at_once_and_goes_on_where_it_stood(folder: Path, server: ChatServer) -> None:
    go_on = threading.Event()

    def interrupts_the_third(request: dict[str, Any], number: int) -> Reply:
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
            go_on.wait(20)
        return _right(request, number)

    server.reply = interrupts_the_third
    began = time.monotonic()
    assert CliRunner().invoke(app, _arguments(folder, server, "--concurrency", "1")).exit_code == 130
    assert time.monotonic() - began < 10
    go_on.set()
    _no_file_of(folder)
    server.reply = _right
    assert "2 answers made, 2 from the cache" in _run(folder, server, "--concurrency", "1")


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["rationales", "--help"])
    assert result.exit_code == 0
    assert "Example: kshot rationales shots.jsonl" in " ".join(result.output.split())
