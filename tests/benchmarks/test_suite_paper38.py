"""The recipe of the paper's 38 adapters parses, and each set has a source that makes examples."""

import json
from pathlib import Path
from typing import Any

import pytest
from suite import paper38
from suite.hub_rows import hub_example
from suite.recipe import HubSource

from kshot.bank.recipe import BankRecipe, read_rows
from kshot.config import read_yaml
from kshot.errors import ConfigError, ExampleError, SourceError

RECIPE = Path(__file__).parents[2] / "recipes" / "paper38.yaml"
ARC = {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
ROWS: dict[str, dict[str, Any]] = {  # as their cards show them
    "arc_easy": ARC,
    "qasc": ARC | {"fact1": "F.", "fact2": "G."},
    "winogrande": {"sentence": "S _", "option1": "a", "option2": "b", "answer": "2"},
    "race": {"article": "T", "question": "Q?", "options": ["a", "b", "c", "d"], "answer": "B"},
    "math_qa": {"Problem": "P", "Rationale": "R", "options": "a ) 1 , b ) 2", "correct": "b"},
    "esnli": {"premise": "P", "hypothesis": "H", "label": 1, "explanation_1": "E."},
    "aqua": {
        "question": "Q",
        "options": ["A)1", "B)2", "C)3", "D)4", "E)5"],
        "rationale": "R",
        "correct": "B",
    },
    "hellaswag": {"ctx": "C", "endings": ["a", "b", "c", "d"], "label": "1"},
    "boolq": {"question": "is it", "passage": "P", "answer": False},
    "webgpt": {"question": {"full_text": "Q"}, "answer_0": "A", "answer_1": "B"},
    "dolly": {"instruction": "I", "context": "", "response": "R"},
    "camel_math": {"message_1": "Q", "message_2": "A"},
}


def test_recipe_parses_with_the_papers_settings() -> None:
    recipe = read_yaml(RECIPE, BankRecipe)
    training = recipe.training
    assert len(recipe.adapters) == 38
    assert (recipe.r, recipe.lora_alpha_over_r, recipe.target_modules) == (16, 1, ("q_proj", "v_proj"))
    assert (training.learning_rate, training.num_train_epochs, training.weight_decay) == (5e-5, 3, 1e-4)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 32
    assert [adapter.name for adapter in recipe.adapters if not adapter.origin] == []


def test_every_adapter_has_a_source() -> None:
    recipe = read_yaml(RECIPE, BankRecipe)
    assert {adapter.name for adapter in recipe.adapters} == set(paper38.read_sources())
    assert all(adapter.data == f"$PAPER38/rows/{adapter.name}.jsonl" for adapter in recipe.adapters)


@pytest.mark.parametrize("name", ROWS)
def test_sources_make_examples(name: str) -> None:
    source = paper38.read_sources()[name]
    assert isinstance(source, HubSource)
    example = hub_example(source, ROWS[name], "row")
    assert example.request
    assert example.output
    assert "{" not in example.request + example.output


def test_choices_of_the_right_answer() -> None:
    example = hub_example(paper38.read_sources()["winogrande"], ROWS["winogrande"], "row")
    assert example.output == "the correct answer is answer2: b"


def test_rows_are_written_and_read_by_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPER38", str(tmp_path))
    good = [{"instruction": f"i{n}", "input": "", "output": "o"} for n in range(3)]
    (tmp_path / "gpt4tools_71k.json").write_text(
        json.dumps([*good, {"instruction": "no answer", "output": ""}])
    )
    assert paper38.main(["gpt4tools"]) == 0
    assert "gpt4tools: 3 rows, 1 left out" in capsys.readouterr().out
    adapter = next(one for one in read_yaml(RECIPE, BankRecipe).adapters if one.name == "gpt4tools")
    assert len(read_rows(adapter, size=9, seed=0, folder=tmp_path)) == 3
    assert paper38.main(["gpt4tools"]) == 0
    assert "gpt4tools: kept" in capsys.readouterr().out
    assert paper38.main(["qed"]) == 1
    assert "qed: expected a file at" in capsys.readouterr().err


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"qed: expected the variable in \$PAPER38"):
        paper38.rows_of("qed", "$PAPER38/qed.jsonl", {})
    with pytest.raises(SourceError, match="expected a file at"):
        paper38.rows_of("qed", "$PAPER38/qed.jsonl", {"PAPER38": str(tmp_path)})
    (tmp_path / "qed.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ExampleError, match="1 rows of 1 that are none"):
        paper38.rows_of("qed", "$PAPER38/qed.jsonl", {"PAPER38": str(tmp_path)})
