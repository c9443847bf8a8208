"""The experts stage with a server in place of a model, and what a change of base or server reruns."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kshot.bank import Bank
from kshot.config import EndpointConfig, TaskConfig, read_task
from kshot.errors import ConfigError, SourceError
from kshot.pipeline import run
from kshot.pipeline.experts_stage import experts_reads
from kshot.pipeline.inputs import Inputs
from kshot.progress import Silent

from ..endpoint.server import fails
from ..experts.completions_server import ModelServer
from ..tiny_bank import write_bank
from ..tiny_task import write_rows

NAMES = ["aa", "bb", "cc"]


@pytest.fixture
def task(tmp_path: Path, tiny_model_folder: Path, lora_folder) -> TaskConfig:
    bank = write_bank(tmp_path / "bank", lora_folder, NAMES)
    shots = tmp_path / "shots.jsonl"
    rows = [{"instruction": f"say {word}", "output": word, "id": word} for word in ("one", "two")]
    write_rows(shots, rows)
    return TaskConfig.model_validate(
        {
            "name": "tiny",
            "base_model": str(tiny_model_folder),
            "shots": str(shots),
            "bank": [str(bank)],
            "experts": {"num_candidates": 3, "num_experts": 2},
            "data": {"budget": 0},
            "evaluation": {"max_new_tokens": 3},
        }
    )


@pytest.fixture
def server(
    task: TaskConfig, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModelServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    bank = Bank.open_all(task.bank)
    found = ModelServer(tiny_model_folder, {adapter.name: adapter.folder for adapter in bank})
    yield found
    found.close()


def _with(task: TaskConfig, **endpoint: object) -> TaskConfig:
    given = task.model_dump()
    given["experts"]["endpoint"] = endpoint
    return TaskConfig.model_validate(given)


def _selection(folder: Path) -> dict[str, object]:
    return json.loads((folder / "experts" / "selection.json").read_text())


def test_the_same_selection_as_with_a_model_here(task, server, tmp_path) -> None:
    run(task, tmp_path / "here", until="experts")
    run(_with(task, url=server.url), tmp_path / "there", until="experts")
    assert _selection(tmp_path / "there")["experts"] == _selection(tmp_path / "here")["experts"]
    written = read_task(tmp_path / "there" / "config.yaml")
    assert written.experts.endpoint == EndpointConfig(url=server.url)
    assert len(server.completions) == 1 + len(NAMES) * 2 * 2


def test_a_server_that_dies_leaves_a_run_that_goes_on(task, server, tmp_path) -> None:
    task = _with(task, url=server.url, concurrency=1)
    server.reply = lambda request, number: server.honest(request, 0) if number < 6 else fails(401)
    with pytest.raises(SourceError, match=r"expected an API key that"):
        run(task, tmp_path / "run", until="experts")
    assert not (tmp_path / "run" / "experts").exists()
    server.requests.clear()
    server.reply = server.honest
    run(task, tmp_path / "run", until="experts")
    asked = len(server.completions)
    assert asked == 1 + len(NAMES) * 2 * 2 - 4
    run(task, tmp_path / "run", until="experts")
    assert len(server.completions) == asked


def test_what_cannot_be_used_is_found_before_anything_is_written(task, tmp_path) -> None:
    for endpoint, message in (
        ({"url": "localhost"}, "expected an endpoint such as"),
        (
            {"url": "http://localhost/v1", "names": {"zz": "x"}},
            r"experts\.endpoint\.names: expected names of",
        ),
        ({"url": "http://localhost/v1", "api_key_env": "NOT_SET"}, "variable NOT_SET, which is not set"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(_with(task, **endpoint), tmp_path / "run", until="experts")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_decides_whether_the_stage_runs_again(task) -> None:
    def reads(task: TaskConfig) -> str:
        return experts_reads(Inputs(task, Silent()))

    url = "http://localhost/v1"
    there = reads(_with(task, url=url))
    assert reads(_with(task, url=url, concurrency=3, timeout_s=9, requests_per_minute=5)) == there
    others = [
        task,
        _with(task, url=url + "2"),
        _with(task, url=url, prefix="x"),
        _with(task, url=url, names={"aa": "x"}),
        task.model_copy(update={"quantization": "4bit"}),
        task.model_copy(update={"quantization": "8bit"}),
    ]
    assert len({there, *map(reads, others)}) == 1 + len(others)
