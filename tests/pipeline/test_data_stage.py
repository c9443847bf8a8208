"""The stage `data`: what is kept and why, what is left out and why, and the rows for other trainers."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from kshot.cli import app
from kshot.config import read_task
from kshot.engine import Engine, LocalEngine, RayEngine
from kshot.errors import ConfigError, ExampleError, SourceError
from kshot.examples import read_examples
from kshot.pipeline.data_stage import data_reads, run_data
from kshot.pipeline.inputs import Inputs
from kshot.progress import Silent

from ..tiny_bank import write_bank
from ..tiny_task import write_rows
from ..word_encoder import random_vectors, write_word_encoder

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WORDS = [*NUMBERS, "red", "green", "blue", "hot", "cold", "big", "small"]
LONG = "count the red and the green balls that three children took from the big box before they went home"


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["say", "please", *WORDS]
    vectors_WD = random_vectors(words, 24)
    vectors_WD[0] = 0
    return write_word_encoder(tmp_path_factory.mktemp("encoder") / "words", words, vectors_WD)


class Counting(LocalEngine):
    """Notes what its shards are called."""

    def __init__(self) -> None:
        self.shards: list[str] = []

    def run(self, make_worker, shards):
        self.shards += [str(shard) for shard in shards]
        return super().run(make_worker, shards)


def _row(text: str, **fields: Any) -> dict[str, Any]:
    return {"instruction": text, "output": text.split()[-1], **fields}


@pytest.fixture
def task_folder(
    tmp_path: Path,
    tiny_model_folder: Path,
    lora_folder: Callable[..., Path],
    encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """3 shots, 3 test rows, a pool of two sources: 60 pairs of words, 30 single words with an adjective."""
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "home"))
    folder = tmp_path / "task"
    write_bank(folder / "bank", lora_folder, ["aa", "bb"])
    pairs = [(one, other) for one in NUMBERS for other in NUMBERS]
    write_rows(folder / "shots.jsonl", [_row(f"say {a} {b}", id=f"shot-{a}") for a, b in pairs[:3]])
    test = [_row(f"say {a} {b}", id=f"test-{b}") for a, b in pairs[3:5]]
    write_rows(folder / "test.jsonl", [*test, _row(LONG, id="test-long")])
    write_rows(
        folder / "pairs.jsonl",
        [
            *(_row(f"say {a} {b} please", id=f"pair-{a}-{b}") for a, b in pairs[5:65]),
            _row("Say zero three!", id="copy-of-a-test-row"),
            _row(f"Now {LONG}, please", id="near-a-test-row"),
            _row("xylophone", id="unknown-to-the-encoder"),
        ],
    )
    singles = [f"say {a} {b} {a}" for a in WORDS[11:] for b in WORDS[11:]][:30]
    write_rows(folder / "singles.jsonl", [_row(text, id=f"single-{n}") for n, text in enumerate(singles)])
    task = {
        "name": "tiny",
        "base_model": str(tiny_model_folder),
        "shots": "shots.jsonl",
        "test": "test.jsonl",
        "bank": ["bank"],
        "pool": ["pairs.jsonl", "singles.jsonl"],
        "experts": {"num_candidates": 2, "num_experts": 2},
        "data": {"budget": 30, "threshold": 0.95, "encoder": str(encoder_folder)},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder


def _change(folder: Path, **data: object) -> None:
    task = yaml.safe_load((folder / "task.yaml").read_text())
    task["data"] |= data
    (folder / "task.yaml").write_text(yaml.safe_dump(task))


def _select(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    out = folder / "data"
    run_data(Inputs(read_task(folder / "task.yaml"), Silent()), out)
    selected, dropped = (
        [json.loads(line) for line in (out / name).read_text().splitlines()]
        for name in ("selected.jsonl", "dropped.jsonl")
    )
    return selected, dropped, json.loads((out / "summary.json").read_text())


def test_every_row_says_why_it_was_kept_or_left_out(task_folder: Path) -> None:
    selected, dropped, summary = _select(task_folder)
    assert len(selected) == 30
    assert {row["nearest_shot"] for row in selected} <= {"shot-zero"}
    assert all(row["source"] == row["id"].partition("-")[0] + "s" for row in selected)
    relevance = [row["relevance"] for row in selected]
    assert relevance == sorted(relevance, reverse=True)
    reasons = {row["id"]: row for row in dropped}
    assert reasons["copy-of-a-test-row"]["reason"] == "exact_match"
    assert reasons["copy-of-a-test-row"]["matched"] == "test row test-three"
    assert reasons["near-a-test-row"]["reason"] == "near_match"
    assert (
        reasons["near-a-test-row"] | {"matched": "test row test-long", "share": 1.0, "source": "pairs"}
        == (reasons["near-a-test-row"])
    )
    kept = {row["id"] for row in selected}
    copies = [row for row in dropped if row["reason"] == "near_copy"]
    assert copies
    assert all(row["kept"] in kept and row["cosine"] > 0.95 for row in copies)
    assert summary["counts"] == Counter(row["reason"] for row in dropped)
    assert summary["without_vector"] == 1
    assert summary["pool_rows"] == 93
    assert summary["avoided"]["near-a-test-row"] == "test row test-long (near, 100% of its words)"
    assert summary["dropped"] == [
        {key: row[key] for key in ("id", "reason", "kept", "cosine")} for row in copies
    ]


def test_summary_by_source(task_folder: Path) -> None:
    selected, _, summary = _select(task_folder)
    assert sum(one["rows"] for one in summary["by_source"]) == 30
    assert {one["source"]: one["rows"] for one in summary["by_source"]} == summary["sources"]
    for one in summary["by_source"]:
        rows = [row for row in selected if row["source"] == one["source"]]
        assert one["share"] == pytest.approx(len(rows) / 30, abs=1e-4)
        assert one["mean_relevance"] == pytest.approx(np.mean([row["relevance"] for row in rows]), abs=1e-4)
        assert one["example"] == f"{rows[0]['instruction']} -> {rows[0]['output']}"


def test_invariant_the_order_of_the_files_does_not_matter(task_folder: Path) -> None:
    first, _, _ = _select(task_folder)
    task = yaml.safe_load((task_folder / "task.yaml").read_text())
    task["pool"] = task["pool"][::-1]
    (task_folder / "task.yaml").write_text(yaml.safe_dump(task))
    for name in ("pairs", "singles"):
        lines = (task_folder / f"{name}.jsonl").read_text().splitlines()
        (task_folder / f"{name}.jsonl").write_text("\n".join(lines[::-1]))
    second, _, _ = _select(task_folder)
    assert [row["id"] for row in second] == [row["id"] for row in first]


@pytest.mark.parametrize("limit", [6, 0.2])
def test_no_source_gives_more_than_its_share(task_folder: Path, limit: float) -> None:
    _change(task_folder, max_per_source=limit, budget=12 if limit == 6 else 30)
    if limit == 0.2:
        with pytest.raises(ConfigError, match=r"budget must be in \[1, 12\], got 30: .*source_full"):
            _select(task_folder)
        return
    selected, dropped, summary = _select(task_folder)
    assert Counter(row["source"] for row in selected) == {"pairs": 6, "singles": 6}
    full = [row["id"] for row in dropped if row["reason"] == "source_full"]
    assert full
    assert summary["avoided"][full[0]] == "its source gave data.max_per_source = 6"


def test_rows_beyond_the_limits_of_length_are_left_out_and_replaced(task_folder: Path) -> None:
    inputs = Inputs(read_task(task_folder / "task.yaml"), Silent())
    lengths = {
        example.id: len(inputs.lm.template.encode_example(example, "instruction"))
        for name in ("pairs", "singles")
        for example in read_examples(task_folder / f"{name}.jsonl")
    }
    middle = int(np.median(list(lengths.values())))
    _change(task_folder, max_tokens=middle, budget=15)
    selected, dropped, summary = _select(task_folder)
    assert len(selected) == 15
    assert max(lengths[row["id"]] for row in selected) <= middle
    long = [row["id"] for row in dropped if row["reason"] == "too_long"]
    assert long
    assert min(lengths[name] for name in long) > middle
    assert summary["avoided"][long[0]] == f"longer than data.max_tokens = {middle}"
    _change(task_folder, max_tokens=None, min_tokens=middle + 1)
    selected, dropped, summary = _select(task_folder)
    assert min(lengths[row["id"]] for row in selected) > middle
    short = next(row["id"] for row in dropped if row["reason"] == "too_short")
    assert summary["avoided"][short] == f"shorter than data.min_tokens = {middle + 1}"


def test_rows_of_benchmarks_are_kept_out(task_folder: Path) -> None:
    selected, _, _ = _select(task_folder)
    before = data_reads(Inputs(read_task(task_folder / "task.yaml"), Silent()))
    write_rows(task_folder / "bench.jsonl", [_row(selected[0]["instruction"].upper(), id="b1")])
    _change(task_folder, benchmarks=["bench.jsonl"])
    after, dropped, summary = _select(task_folder)
    assert selected[0]["id"] not in {row["id"] for row in after}
    assert len(after) == 30
    assert summary["avoided"][selected[0]["id"]] == "row of task/bench.jsonl: b1"
    assert dropped[0]["index"] == min(row["index"] for row in dropped if "matched" in row)
    assert data_reads(Inputs(read_task(task_folder / "task.yaml"), Silent())) != before


@pytest.mark.parametrize("strategy", ["max", "centroid", "round_robin", "mmr"])
def test_every_strategy_fills_the_budget_over_a_shortlist_too(task_folder: Path, strategy: str) -> None:
    _change(task_folder, strategy=strategy)
    whole, _, _ = _select(task_folder)
    encoder = yaml.safe_load((task_folder / "task.yaml").read_text())["data"]["encoder"]
    _change(task_folder, shortlist_encoder=encoder, shortlist_factor=3)
    short, _, _ = _select(task_folder)
    assert [row["id"] for row in short] == [row["id"] for row in whole]
    assert "copy-of-a-test-row" not in {row["id"] for row in short}


def _written(folder: Path, engine: Engine | None) -> dict[str, bytes]:
    """Select with an empty cache; return the files that the stage writes."""
    for path in (folder.parent / "home").rglob("*.npy"):
        path.unlink()
    run_data(Inputs(read_task(folder / "task.yaml"), Silent(), engine), folder / "data")
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


@pytest.mark.parametrize("encoder", ["sentences", "base-model"])
@pytest.mark.parametrize("strategy", ["max", "centroid", "round_robin", "mmr"])
def test_an_engine_changes_nothing_that_is_written(task_folder: Path, strategy: str, encoder: str) -> None:
    _change(task_folder, strategy=strategy, **({} if encoder == "sentences" else {"encoder": encoder}))
    engine = Counting()
    assert _written(task_folder, engine) == _written(task_folder, None)
    assert engine.shards == ["the vectors of pairs, shard 1", "the vectors of singles, shard 1"]


def test_an_engine_embeds_both_stages_of_a_shortlist(task_folder: Path) -> None:
    encoder = yaml.safe_load((task_folder / "task.yaml").read_text())["data"]["encoder"]
    _change(task_folder, shortlist_encoder=encoder, encoder="base-model", budget=10, shortlist_factor=3)
    engine = Counting()
    assert _written(task_folder, engine) == _written(task_folder, None)
    assert engine.shards[-1] == "the vectors of the shortlist from row 1"


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["sentences", "base-model"])
def test_workers_of_ray_change_nothing_that_is_written(task_folder: Path, encoder: str) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'kshot[ray]'")
    _change(task_folder, **({} if encoder == "sentences" else {"encoder": encoder}))
    with RayEngine(num_workers=2) as engine:
        assert _written(task_folder, engine) == _written(task_folder, None)


def test_a_pool_that_a_url_names(task_folder: Path) -> None:
    here = _written(task_folder, None)
    task = yaml.safe_load((task_folder / "task.yaml").read_text())
    task["pool"] = [f"file://{task_folder}/{name}.jsonl" for name in ("pairs", "singles")]
    (task_folder / "task.yaml").write_text(yaml.safe_dump(task))
    assert _written(task_folder, None) == here
    task["pool"] = ["memory://nothing/here.jsonl"]
    (task_folder / "task.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(SourceError, match=r"cannot read memory://nothing/here\.jsonl: no such file"):
        Inputs(read_task(task_folder / "task.yaml"), Silent())


def test_augment_prints_a_table_and_writes_rows(task_folder: Path, tmp_path: Path) -> None:
    command = ["augment", str(task_folder / "task.yaml"), "--out", str(tmp_path / "run")]
    written = tmp_path / "rows.parquet"
    result = CliRunner().invoke(app, [*command, "--write", str(written), "--form", "messages"])
    assert result.exit_code == 0, result.output
    table = " ".join(result.output.split())
    assert "30 of 93 open rows" in table
    assert "near-copies of kept rows" in table
    assert f"written: {written}" in result.output.replace("\n", "")
    selected = read_examples(tmp_path / "run" / "data" / "selected.jsonl")
    assert [(row.request, row.output) for row in read_examples(written)] == [
        (row.request, row.output) for row in selected
    ]
    as_json = CliRunner().invoke(app, [*command, "--json", "--write", str(tmp_path / "rows.jsonl")])
    found = json.loads(as_json.stdout)
    assert found["written"] == str(tmp_path / "rows.jsonl")
    assert found["data"]["selected"] == 30
    first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert list(first) == ["instruction", "input", "output"]


def test_augment_pushes_with_a_card(
    task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[Any] = []

    def keep(repo_id: str, rows: list[dict[str, Any]], *, card: str) -> str:
        pushed.extend([repo_id, rows, card])
        return f"https://hub/{repo_id}"

    monkeypatch.setattr("kshot.pipeline.export_data.push_dataset", keep)
    command = ["augment", str(task_folder / "task.yaml"), "--out", str(tmp_path / "run"), "--push", "me/rows"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "pushed: https://hub/me/rows" in result.output
    repo_id, rows, card = pushed
    assert repo_id == "me/rows"
    assert len(rows) == 30
    assert yaml.safe_load(card.split("---")[1])["configs"] == [
        {"config_name": "default", "data_files": "data/train.parquet"}
    ]
    assert "30 of 93 open rows" in card
    assert "| pairs |" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--write", "rows.csv"], r"ends in .jsonl or .parquet, got rows.csv"),
        (["--form", "messages"], r"add --write FILE or --push owner/name"),
    ],
)
def test_augment_refuses_before_it_runs(
    task_folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    command = ["augment", str(task_folder / "task.yaml"), "--out", str(tmp_path / "run"), *options]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_benchmarks_of_one_file_name_and_columns_of_their_own_are_all_kept_out(task_folder: Path) -> None:
    selected, _, _ = _select(task_folder)
    first, second = selected[0], selected[1]
    for name, row in (("one", first), ("two", second)):
        folder = task_folder / name / "set"
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_text(json.dumps({"q": row["instruction"], "a": "?"}) + "\n")
    columns = {"instruction": "q", "output": "a"}
    paths = ["one/set/test.jsonl", "two/set/test.jsonl"]
    _change(task_folder, benchmarks=[{"path": path, "columns": columns} for path in paths])
    _, _, summary = _select(task_folder)
    assert summary["avoided"][first["id"]].startswith("row of set/test.jsonl: ")
    assert summary["avoided"][second["id"]].startswith("row of set/test.jsonl: ")


def test_refuses_a_benchmark_with_rows_that_cannot_be_read(task_folder: Path) -> None:
    write_rows(task_folder / "bench.jsonl", [_row("say one"), {"instruction": "say two", "output": ""}])
    _change(task_folder, benchmarks=["bench.jsonl"])
    with pytest.raises(
        ExampleError, match=r"data\.benchmarks: expected rows that can all be read in .*no_output"
    ):
        _ = Inputs(read_task(task_folder / "task.yaml"), Silent()).benchmarks


def test_a_pool_that_matches_the_test_leaves_no_budget(task_folder: Path) -> None:
    (task_folder / "pairs.jsonl").write_text((task_folder / "test.jsonl").read_text())
    _change(task_folder, budget=31)
    with pytest.raises(ConfigError, match=r"data\.budget must be in \[0, 30\]"):
        Inputs(read_task(task_folder / "task.yaml"), Silent()).check_budget()
