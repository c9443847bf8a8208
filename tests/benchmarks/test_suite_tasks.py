"""The recipes of the twelve tasks, their rows, and rows of the Hub."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from suite.hub_rows import hub_example
from suite.recipe import TaskRecipe, read_recipe, read_recipes
from suite.shared_work import SharedWork
from suite.task_rows import read_task_rows
from suite_toy import CHOSEN, START, WRITTEN, row, toy_cell, write_parquet

from kshot.errors import ConfigError, ExampleError, SourceError

RECIPES = read_recipes()
TASKS = Path(os.environ.get("KSHOT_DATA", "/none")) / "tasks"
ARC = {
    "id": "Mercury_1",
    "question": "What is hot?",
    "choices": {"text": ["ice", "fire", "snow"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
# A row of each data set as its card shows it, and what it becomes: request, output, gold, right choice.
HUB_ROWS: dict[str, tuple[Mapping[str, Any], str, str, str, str | None]] = {
    "arc_easy": (
        ARC,
        "What is hot?",
        "the correct answer is answer2",
        "the correct answer is answer2",
        "fire",
    ),
    "piqa": (
        {"goal": "Boil water.", "sol1": "Heat it.", "sol2": "Cool it.", "label": 0},
        "Boil water.",
        "the correct answer is solution1",
        "the correct answer is solution1",
        "Heat it.",
    ),
    "boolq": (
        {"question": "is fire hot", "answer": True, "passage": "Fire is hot."},
        "is fire hot?",
        "the correct answer is true",
        "the correct answer is true",
        "true",
    ),
    "gsm8k": (
        {"question": "1 + 1?", "answer": "Two.\n#### 2"},
        "1 + 1?",
        "Two.\n#### 2",
        "Two.\n#### 2",
        None,
    ),
    "mbpp": (
        {
            "task_id": 1,
            "text": "Add.",
            "code": "def f(): pass",
            "test_list": ["assert f() == 1", "assert f()"],
        },
        "assert f() == 1\nassert f()",
        "def f(): pass",
        "assert f() == 1\nassert f()",
        None,
    ),
    "t0_glue_mrpc": (
        {"sentence1": "A b.", "sentence2": "A c.", "label": 1, "idx": 3},
        "A b.\nA c.",
        "yes",
        "yes",
        "yes",
    ),
    "t0_social_i_qa": (
        {
            "context": "X ran.",
            "question": "Why?",
            "answerA": "a",
            "answerB": "b",
            "answerC": "c",
            "label": "3",
        },
        "Possible answers: a, b, c",
        "c",
        "c",
        "c",
    ),
    "mawps_equation": (
        {"id": "m", "question": "8 less 4?", "expression": "8-4", "result": "4"},
        "8 less 4?",
        "Equation: X=8-4\nThe answer is 4.",
        "4",
        None,
    ),
}


def test_invariant_twelve_tasks_half_of_them_of_the_paper() -> None:
    assert [recipe.kind for recipe in RECIPES.values()] == ["paper"] * 6 + ["transfer"] * 6
    assert all(recipe.leaks and recipe.num_test >= 200 for recipe in RECIPES.values())


@pytest.mark.parametrize("name", HUB_ROWS)
def test_golden_rows_of_the_hub(name: str) -> None:
    raw, request, output, gold, choice = HUB_ROWS[name]
    source = RECIPES[name].hub
    assert source is not None
    example = hub_example(source, raw, "row-1")
    assert request in example.request
    assert (example.output, example.gold) == (output, gold)
    assert (
        example.choices[example.label] if example.choices and example.label is not None else None
    ) == choice
    if RECIPES[name].scorer == "multiple_choice":
        assert request == example.question


def test_hub_rows_that_do_not_fit_are_refused() -> None:
    source = RECIPES["arc_easy"].hub
    assert source is not None
    with pytest.raises(ExampleError, match="expected answerKey among A, B, C, got 'E'"):
        hub_example(source, ARC | {"answerKey": "E"}, "row-1")
    with pytest.raises(ExampleError, match=r"expected a column 'choices.label', got"):
        hub_example(source, ARC | {"choices": {"text": ["ice"]}}, "row-1")


@pytest.mark.skipif(not TASKS.is_dir(), reason="KSHOT_DATA names no folder with tasks/")
@pytest.mark.parametrize("name", ["t0_glue_mrpc", "t0_social_i_qa", "fv_translate_en_de"])
def test_invariant_test_rows_are_closed_enough_and_no_shots(name: str) -> None:
    rows = read_task_rows(RECIPES[name])
    asked = {shot.request for shots in rows.shots.values() for shot in shots}
    assert len(rows.test) == RECIPES[name].num_test
    assert all(RECIPES[name].is_closed(one.request) for one in rows.test)
    assert asked.isdisjoint(one.request for one in rows.test)
    assert {one.id for one in rows.test}.isdisjoint(one.id for one in rows.train)
    assert [len(shots) for shots in rows.shots.values()] == [16, 16, 16]


def test_invariant_test_rows_do_not_depend_on_the_seed_and_train_has_none_of_them(toy: SharedWork) -> None:
    rows = toy.rows_of(CHOSEN)
    assert len(rows.test) == CHOSEN.num_test
    used = {one.id for one in rows.test} | {shot.id for shots in rows.shots.values() for shot in shots}
    assert used.isdisjoint(one.id for one in rows.train)
    assert rows.shots[1][0].question == "what is number 4"
    assert rows.shots[1][0].label == 1
    assert rows.shots[1][0].rationale == "because"


def test_invariant_train_rows_fill_up_closed_test_rows(toy: SharedWork, tmp_path: Path) -> None:
    recipe = WRITTEN.model_copy(update={"closed": "say one", "fill_from_train": True, "num_test": 6})
    rows = read_task_rows(recipe)
    assert all("say one" in one.request for one in rows.test)
    places = [int(one.id.removeprefix("row-")) for one in rows.test]
    assert [place >= 40 for place in places] == sorted((place >= 40 for place in places), reverse=True)
    assert min(places) >= 12  # before that are shots of the three seeds


def test_invariant_picked_rows_are_kept_and_none_is_of_the_task(toy: SharedWork, tmp_path: Path) -> None:
    extra = [row(index) for index in (45, 46, 30)]  # test rows and a training row
    write_parquet(tmp_path / "toy" / "data" / "open" / "leak.parquet", extra)
    cell = toy_cell(WRITTEN, "base", None)
    rows, shots = toy.rows_of(WRITTEN), toy.shots_of(cell)
    picked = toy.open_rows.pick(WRITTEN, rows, shots, START, 0)
    own = {one.request for one in [*rows.test, *rows.train, *shots]}
    assert len(picked) == START.data.budget
    assert own.isdisjoint(one.request for one in picked)
    drawn = START.model_copy(update={"rows": "random"})
    by_chance = toy.open_rows.pick(WRITTEN, rows, shots, drawn, 0)
    assert len(by_chance) == START.data.budget
    assert by_chance != picked
    toy.open_rows.__dict__.pop("pool")
    toy.open_rows.lm = lambda: pytest.fail("picked rows are kept")
    assert toy.open_rows.pick(WRITTEN, rows, shots, START, 0) == picked


def test_a_task_in_neither_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KSHOT_DATA", raising=False)
    with pytest.raises(SourceError, match="expected KSHOT_DATA to name a folder with tasks/written"):
        read_task_rows(WRITTEN)
    monkeypatch.setenv("KSHOT_DATA", "/nowhere")
    with pytest.raises(SourceError, match="got '/nowhere'"):
        read_task_rows(WRITTEN)


def test_rows_without_choices_are_refused(toy: SharedWork) -> None:
    recipe = WRITTEN.model_copy(update={"scorer": "multiple_choice"})
    with pytest.raises(ExampleError, match="expected choices and label in every row"):
        read_task_rows(TaskRecipe.model_validate(recipe.model_dump()))


def test_a_recipe_with_a_broken_pattern_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("name: a\ntitle: A\nkind: paper\nscorer: number\nclosed: '('\n")
    with pytest.raises(ConfigError, match="expected a regular expression"):
        read_recipe(path)
