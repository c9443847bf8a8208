"""The page is drawn from stored cells alone, and its numbers are those of a calculation by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
from suite.arms import ARMS
from suite.cell import read_cell, read_cells, write_cell
from suite.comparison import (
    accuracy_of,
    arrange,
    best_other,
    compare,
    mean_over_tasks,
    tasks_harmed,
    tasks_won,
)
from suite.mixed_cases import cases_of
from suite.table import draw
from suite_toy import CHOSEN, WRITTEN

RECIPES = {"written": WRITTEN, "chosen": CHOSEN}


def stored(task: str, arm: str, correct: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    tuned = arm in ARMS and ARMS[arm].is_tuned
    return {
        "task": task,
        "arm": arm,
        "seed": seed,
        "accuracy": correct.count("1") / len(correct),
        "n": len(correct),
        "nll": 1.5,
        "seconds": {"build": 10.0, "measure": 20.0},
        "trained_parameters": 1000 if tuned else 0,
        "rate": {"chosen": 0.002, "tried": []} if tuned else None,
        "notes": {},
        "predictions": {
            "id": [f"r{place}" for place in range(len(correct))],
            "correct": correct,
            "nll": [1.5] * len(correct),
        },
    } | more


CELLS = [
    stored("written", "base", "1000"),
    stored("written", "fresh", "1100"),
    stored("written", "kshot", "1110"),
    stored("written", "kshot_mixture", "1110", notes={"experts": ["aa", "bb"]}),
    stored("written", "oracle", "1111"),
    stored("chosen", "base", "11110"),
    stored("chosen", "fresh", "11100"),
    stored("chosen", "kshot", "10000"),
]


def test_against_hand_calculation_of_means_and_errors() -> None:
    cells = arrange(CELLS)
    one = accuracy_of(cells["written"]["kshot"])
    assert one.value == 0.75
    assert one.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    other = accuracy_of(cells["chosen"]["kshot"])
    both = mean_over_tasks([one, other])
    assert both.value == pytest.approx((0.75 + 0.2) / 2)
    assert both.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3 + 0.2 * 0.8 / 4) / 2)


def test_against_hand_calculation_with_several_seeds() -> None:
    seeds = {0: stored("written", "kshot", "1100"), 1: stored("written", "kshot", "1000", seed=1)}
    found = accuracy_of(seeds)
    shares = [1.0, 0.5, 0.0, 0.0]
    rows = sum((share - 0.375) ** 2 for share in shares) / 3 / 4
    of_seeds = ((0.5 - 0.375) ** 2 + (0.25 - 0.375) ** 2) / 1 / 2
    assert found.value == 0.375
    assert found.num_seeds == 2
    assert found.stderr == pytest.approx(math.sqrt(rows + of_seeds))


def test_against_hand_calculation_of_a_paired_difference() -> None:
    versus = compare(arrange(CELLS), "kshot", "fresh")
    assert versus is not None
    assert versus.by_task["written"].value == 0.25
    assert versus.by_task["written"].stderr == pytest.approx(math.sqrt(0.25 / 4))
    assert versus.by_task["chosen"].value == -0.4
    assert versus.difference == pytest.approx(-0.075)
    assert versus.p_by_task == {"written": 1.0, "chosen": 0.5}
    assert versus.low < versus.difference < versus.high


def test_invariant_a_difference_takes_rows_and_seeds_that_both_arms_have() -> None:
    cells = [
        stored("written", "kshot", "10"),
        stored("written", "kshot", "11", seed=1),
        stored("written", "base", "00", seed=1),
        stored("chosen", "kshot", "1"),
    ]
    versus = compare(arrange(cells), "kshot", "base")
    assert versus is not None
    assert versus.by_task.keys() == {"written"}
    assert versus.difference == 1.0
    assert compare(arrange(cells), "base", "fresh") is None


def test_invariant_rows_are_paired_by_id_not_by_place() -> None:
    turned = stored("written", "base", "0001")
    turned["predictions"]["id"] = ["r3", "r2", "r1", "r0"]
    versus = compare(arrange([stored("written", "kshot", "1000"), turned]), "kshot", "base")
    assert versus is not None
    assert versus.difference == 0
    assert versus.by_task["written"].stderr == 0


def test_invariant_bounds_are_no_rivals() -> None:
    cells = arrange(CELLS)
    methods = ["base", "fresh", "kshot"]
    assert tasks_won(cells, "kshot", methods) == ["written"]
    assert tasks_harmed(cells, "kshot", "base") == ["chosen"]
    assert best_other(cells, "kshot", methods) == "fresh"
    assert best_other(arrange(CELLS[:1]), "kshot", methods) is None


def test_golden_page(tmp_path: Path) -> None:
    for cell in CELLS:
        write_cell(tmp_path / cell["task"] / cell["arm"] / "seed0.json", cell)
    write_cell(tmp_path / "chosen" / "ties" / "seed0.json", {"error": "ValueError: too bad"})
    page = draw(tmp_path, RECIPES, tmp_path / "none")
    lines = page.splitlines()
    assert "| arm | Written | Chosen | mean of 2 | seeds |" in lines
    assert "| base model | 25.0 ± 25.0 | 80.0 ± 20.0 | 52.5 ± 16.0 | 1 |" in lines
    assert (
        "| **kshot: what folds of the shots choose** | 75.0 ± 25.0 | 20.0 ± 20.0 | 47.5 ± 16.0 | 1 |" in lines
    )
    assert "| *oracle: best expert by test rows* | 100.0 ± 0.0 | – | – | 1 |" in lines
    assert "| *test rows* | 4 | 5 |  |  |" in lines
    assert any(line.startswith("| base model | -5.0 ± 18.9 |") for line in lines)
    assert "Best of all methods on 1 of 2 tasks (written)." in page
    assert "Below the base model by more than a standard error on 1 (chosen)." in page
    assert f"The best other arm is {ARMS['fresh'].title}: -7.5 ± 17.5, not outside" in page
    assert "| kshot's mixture, its own settings | 1,000 | 0.002 | 1.500 | – | 10 | 20 |" in lines
    assert "- chosen, ties: ValueError: too bad" in lines
    assert page == draw(tmp_path, RECIPES, tmp_path / "none")


def test_golden_mixed_cases() -> None:
    experts = [stored("written", "expert-aa", "1010"), stored("written", "expert-bb", "1001")]
    cases = cases_of([*CELLS, *experts], seed=0)["written"]
    assert [(case.kind, case.num_rows, case.num_right["kshot_mixture"]) for case in cases] == [
        ("all right", 1, 1),
        ("mixed", 2, 1),
        ("all wrong", 1, 1),
    ]
    assert cases_of(CELLS, seed=0) == {}


def test_golden_ablation(tmp_path: Path) -> None:
    for value, correct in (("leak_free", "1100"), ("with_own_adapter", "1110")):
        cell = stored("written", value, correct)
        write_cell(tmp_path / "leak" / "written" / value / "seed0.json", cell)
    page = draw(tmp_path / "none", RECIPES, tmp_path)
    assert "No cell is finished yet." in page
    assert "## Ablation: leak" in page
    assert "| with_own_adapter | 75.0 ± 25.0 | 75.0 ± 25.0 |" in page


def test_roundtrip_of_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "written" / "base" / "seed0.json"
    write_cell(path, CELLS[0])
    assert read_cell(path) == CELLS[0]
    path.with_name("seed1.json").write_text("{ half")
    assert read_cells(tmp_path) == [CELLS[0]]
