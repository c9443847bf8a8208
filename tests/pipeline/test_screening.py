"""A bank larger than what is scored: ordered, halved, scored; the order alone; and bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kshot.bank import Bank
from kshot.bank.index import write_index
from kshot.cli import main
from kshot.config import EndpointConfig, read_task
from kshot.errors import AdapterError, ConfigError
from kshot.language_model import LanguageModel
from kshot.pipeline import run
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.screening_stage import is_ordered
from kshot.progress import Silent

from ..tiny_bank import write_bank
from ..tiny_task import write_rows

NAMES = [f"m{number}" for number in range(7)]
PRODUCTS = ["screening/order.json", "experts/screening.json", "experts/scores.json", "experts/selection.json"]


@pytest.fixture
def task_folder(tmp_path: Path, tiny_model_folder: Path, lora_folder: Callable[..., Path]) -> Path:
    """8 shots, 7 adapters of which 3 are scored: 6 enter, on 4 shots."""
    folder = tmp_path / "task"
    write_bank(folder / "bank", lora_folder, NAMES, r=2)
    shots = [
        {"instruction": f"say {word} please", "output": f"{word} {word}", "id": word}
        for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")
    ]
    write_rows(folder / "shots.jsonl", shots)
    task = {
        "name": "tiny",
        "base_model": str(tiny_model_folder),
        "shots": "shots.jsonl",
        "bank": ["bank"],
        "experts": {"num_candidates": 3, "num_experts": 2, "screen": 3, "halving_shots": 4},
        "data": {"budget": 0},
        "evaluation": {"max_new_tokens": 3},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder


def change(folder: Path, **experts: object) -> None:
    task = yaml.safe_load((folder / "task.yaml").read_text())
    task["experts"] |= experts
    (folder / "task.yaml").write_text(yaml.safe_dump(task))


def read(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())


def started(out: Path) -> list[str]:
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [event["stage"] for event in events if event["event"] == "started" and event["stage"] != "run"]


def kshot(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["kshot", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_whole_way(task_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(task_folder / "task.yaml", out, until="experts")
    order = read(out, "screening/order.json")
    assert sorted(row["name"] for row in order["order"]) == NAMES
    assert [row["change"] for row in order["order"]] == sorted(row["change"] for row in order["order"])
    found = read(out, "experts/screening.json")
    assert found["entered"] == sorted(row["name"] for row in order["order"][:6])
    assert [(one["num_shots"], len(one["ranking"])) for one in found["rounds"]] == [(4, 6)]
    assert found["survivors"] == found["rounds"][0]["survivors"]
    assert found["survivors"] == [row["name"] for row in found["rounds"][0]["ranking"][:3]]
    assert found["num_adapters"] == 7
    scored = [row["name"] for row in read(out, "experts/scores.json")["scores"]]
    assert scored == sorted(found["survivors"])
    assert set(read(out, "experts/selection.json")["experts"]) <= set(scored)


def test_goes_on_after_a_kill_with_the_same_bytes(task_folder: Path, tmp_path: Path) -> None:
    """The stages are gone, and the last lines of what they found out: as if killed while scoring."""
    out = tmp_path / "run"
    run(task_folder / "task.yaml", out, until="experts")
    want = {name: (out / name).read_bytes() for name in PRODUCTS}
    store = (out / ".scores.jsonl").read_bytes()
    lines = store.splitlines(keepends=True)
    for kept in (3, len(lines) - 4):
        for name in PRODUCTS:
            (out / name).parent.joinpath("stage.json").unlink(missing_ok=True)
        (out / ".scores.jsonl").write_bytes(b"".join(lines[:kept]) + b'{"key"')
        run(task_folder / "task.yaml", out, until="experts")
        assert {name: (out / name).read_bytes() for name in PRODUCTS} == want


def test_order_alone_and_then_the_rest(
    task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert kshot(monkeypatch, "screen", str(task_folder / "task.yaml"), "--out", str(out), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["screening"] == read(out, "screening/order.json")
    assert started(out) == ["screening"]
    change(task_folder, screen=4)  # the order does not depend on it
    assert kshot(monkeypatch, "select", str(task_folder / "task.yaml"), "--out", str(out)) == 0
    assert started(out) == ["screening", "experts"]
    assert len(read(out, "experts/scores.json")["scores"]) == 4


def test_order_of_a_bank_that_is_scored_whole(
    task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(task_folder, screen=None)
    (task_folder / "bank" / "m1" / "adapter_model.safetensors").write_bytes(b"no weights")
    sound = [Bank.open(task_folder / "bank" / name)[name].entry for name in NAMES if name != "m1"]
    write_index(task_folder / "bank", [*sound, sound[0].model_copy(update={"name": "m1"})])
    out = tmp_path / "run"
    assert kshot(monkeypatch, "screen", str(task_folder / "task.yaml"), "--out", str(out)) == 0
    shown = capsys.readouterr()
    assert "m1 could not be ordered" in shown.out
    assert "left out m1" in shown.err
    assert list(read(out, "screening/order.json")["failures"]) == ["m1"]
    assert run(task_folder / "task.yaml", out, until="experts").folder == out
    assert not (out / "experts" / "screening.json").exists()
    assert started(out) == ["screening", "experts"]


def test_a_bank_of_another_base_fails_as_a_whole(task_folder: Path, tmp_path: Path) -> None:
    bank = Bank.open(task_folder / "bank")
    write_index(
        task_folder / "bank",
        [adapter.entry.model_copy(update={"target_modules": ("c_attn",)}) for adapter in bank],
    )
    out = tmp_path / "run"
    with pytest.raises(AdapterError, match="linear modules of the base, got adapters of c_attn"):
        run(task_folder / "task.yaml", out, until="experts")
    assert not (out / "screening").exists()


def test_a_screened_bank_is_not_read_for_a_check(task_folder: Path) -> None:
    inputs = Inputs(read_task(task_folder / "task.yaml"), Silent())
    for name in NAMES:
        (task_folder / "bank" / name / "adapter_model.safetensors").unlink()
    assert isinstance(inputs.lm, LanguageModel)
    assert inputs.is_screened


def test_refuses(task_folder: Path) -> None:
    change(task_folder, screen=2)
    with pytest.raises(ConfigError, match=r"experts\.screen must be at least num_candidates = 3, got 2"):
        read_task(task_folder / "task.yaml")
    change(task_folder, screen=3, halving_shots=2, endpoint={"url": "http://localhost:1/v1"})
    with pytest.raises(ConfigError, match=r"experts\.halving_shots has no effect with experts\.endpoint"):
        read_task(task_folder / "task.yaml")


def test_a_bank_that_fits_the_first_round_is_not_ordered(task_folder: Path, tmp_path: Path) -> None:
    change(task_folder, halving_shots=1)
    out = tmp_path / "run"
    run(task_folder / "task.yaml", out, until="experts")
    assert started(out) == ["experts"]
    found = read(out, "experts/screening.json")
    assert found["entered"] == NAMES
    assert [(one["num_shots"], len(one["ranking"])) for one in found["rounds"]] == [(2, 7), (4, 6)]
    assert len(read(out, "experts/scores.json")["scores"]) == 3


def test_a_server_scores_the_first_of_the_order_or_all(task_folder: Path) -> None:
    task = read_task(task_folder / "task.yaml")
    served = {"halving_shots": 1, "endpoint": EndpointConfig(url="http://localhost:1/v1")}

    def inputs(**experts: object) -> Inputs:
        own = task.experts.model_copy(update=served | experts)
        return Inputs(task.model_copy(update={"experts": own}), Silent())

    assert is_ordered(inputs())
    assert not is_ordered(inputs(screen=None))
    assert not is_ordered(inputs(screen=7))
    assert inputs(screen=None).task.experts.num_scored(1000) == 1000


@pytest.mark.parametrize(
    ("experts", "num_adapters", "scored"),
    [
        ({}, 64, 64),
        ({}, 65, 64),
        ({"screen": 100}, 100_000, 100),
        ({"screen": 100}, 20, 20),
    ],
)
def test_how_many_are_scored(
    task_folder: Path, experts: dict[str, Any], num_adapters: int, scored: int
) -> None:
    change(task_folder, screen=None)
    change(task_folder, **experts)
    assert read_task(task_folder / "task.yaml").experts.num_scored(num_adapters) == scored
