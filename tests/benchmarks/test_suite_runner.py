"""Every arm is built and measured; runs resume; a failing arm is written down."""

import json
import math
from pathlib import Path

import pytest
import torch
from suite.arms import ARMS, CHOICES, MIXTURE_ARM, ArmInfo
from suite.cell import read_cell
from suite.measure import measure
from suite.mixed_cases import expert_cells
from suite.recipe import TaskRecipe
from suite.reproduce import SAME, reproduce_cells
from suite.runner import RunPlan, run_cells
from suite.shared_work import SharedWork
from suite_toy import CHOSEN, WRITTEN, toy_cell

from kshot.errors import AdapterError

NOBODY = ArmInfo("nobody", "suite.own.single:build_named", settings={"name": "nobody"})


@pytest.mark.parametrize(("recipe", "arms"), [(WRITTEN, list(ARMS)), (CHOSEN, ["few_shot", MIXTURE_ARM])])
def test_invariant_every_arm_is_built_measured_and_stored(
    toy: SharedWork, tmp_path: Path, recipe: TaskRecipe, arms: list[str]
) -> None:
    plan, said = RunPlan(tmp_path / "results", rates=[0.01]), []
    cells = [toy_cell(recipe, arm, ARMS[arm]) for arm in arms]
    assert run_cells(cells, toy, plan, said.append) == 0, said
    for arm in arms:
        found = read_cell(tmp_path / "results" / recipe.name / arm / "seed0.json")
        assert found is not None, arm
        marks = found["predictions"]["correct"]
        assert len(marks) == found["n"] == recipe.num_test, arm
        assert found["accuracy"] == marks.count("1") / len(marks), arm
        assert found["nll"] == pytest.approx(sum(found["predictions"]["nll"]) / len(marks), abs=1e-3), arm
        assert found["trained_parameters"] > 0 or not ARMS[arm].is_tuned, arm


def test_invariant_a_tuned_cell_keeps_the_rates_that_were_tried(toy: SharedWork, tmp_path: Path) -> None:
    plan, cell = RunPlan(tmp_path / "results", rates=[0.003, 0.01]), toy_cell(WRITTEN, "fresh", ARMS["fresh"])
    assert run_cells([cell], toy, plan, lambda line: None) == 0
    found = read_cell(cell.path(plan.results)) or {}
    tried = {trial["rate"]: sum(trial["nll"]) for trial in found["rate"]["tried"]}
    assert list(tried) == [0.003, 0.01]
    assert found["training"]["learning_rate"] == found["rate"]["chosen"] == min(tried, key=tried.__getitem__)


def test_invariant_another_seed_lends_its_rate_and_is_tried_where_it_has_none(
    toy: SharedWork, tmp_path: Path
) -> None:
    plan = RunPlan(tmp_path / "results", rates=[0.003, 0.01], rates_of_seed=0)
    first, second = (toy_cell(WRITTEN, "fresh", ARMS["fresh"], seed) for seed in (0, 1))
    assert run_cells([second], toy, plan, lambda line: None) == 0
    assert len((read_cell(second.path(plan.results)) or {})["rate"]["tried"]) == 2
    assert run_cells([first, second], toy, plan, lambda line: None) == 0
    chosen = (read_cell(first.path(plan.results)) or {})["rate"]["chosen"]
    assert (read_cell(second.path(plan.results)) or {})["rate"] == {
        "chosen": chosen,
        "tried": [],
        "of_seed": 0,
    }


def test_invariant_a_finished_cell_is_skipped_until_what_it_reads_changes(
    toy: SharedWork, tmp_path: Path
) -> None:
    plan, cell = RunPlan(tmp_path / "results"), toy_cell(CHOSEN, "base", ARMS["base"])
    run_cells([cell], toy, plan, lambda line: None)
    path = cell.path(plan.results)
    before, said = path.stat().st_mtime_ns, []
    run_cells([cell], toy, plan, said.append)
    assert path.stat().st_mtime_ns == before
    assert said == []
    toy.limit = 3
    run_cells([cell], toy, plan, said.append)
    assert len(said) == 1
    assert json.loads(path.read_text())["n"] == 3


def test_invariant_a_failing_arm_is_written_down_tried_again_and_stops_no_other(
    toy: SharedWork, tmp_path: Path
) -> None:
    plan = RunPlan(tmp_path / "results", command="python benchmarks/suite.py --arms nobody")
    cells = [toy_cell(CHOSEN, "nobody", NOBODY), toy_cell(CHOSEN, "base", ARMS["base"])]
    said: list[str] = []
    assert run_cells(cells, toy, plan, said.append) == 1
    failed = read_cell(cells[0].path(plan.results))
    assert failed is not None
    assert "nobody" in failed["error"]
    assert failed["command"] == plan.command
    assert "Traceback" in (toy.work / "errors" / "chosen-nobody-seed0.txt").read_text()
    finished = read_cell(cells[1].path(plan.results))
    assert finished is not None
    assert "error" not in finished
    assert run_cells(cells, toy, plan, said.append) == 1
    assert [line.split()[1] for line in said] == ["nobody", "base", "nobody"]


def test_roundtrip_a_stored_cell_comes_out_the_same_again(toy: SharedWork, tmp_path: Path) -> None:
    plan, cell = RunPlan(tmp_path / "results", rates=[0.01]), toy_cell(WRITTEN, "fresh", ARMS["fresh"])
    said: list[str] = []
    assert reproduce_cells([cell], toy, plan, said.append) == 1
    assert said[-1].endswith("is not stored")
    run_cells([cell], toy, plan, said.append)
    assert reproduce_cells([cell], toy, plan, said.append) == 0
    assert said[-1].endswith(SAME)
    path = cell.path(plan.results)
    path.write_text(path.read_text().replace('"correct": "', '"correct": "x'))
    assert reproduce_cells([cell], toy, plan, said.append) == 1
    assert said[-1].endswith("differs in correct")


def test_invariant_the_fresh_lora_has_as_many_weights_as_the_mixture(toy: SharedWork, tmp_path: Path) -> None:
    plan = RunPlan(tmp_path / "results", rates=[0.01])
    cells = [toy_cell(CHOSEN, arm, ARMS[arm]) for arm in ("fresh_same_count", MIXTURE_ARM)]
    run_cells(cells, toy, plan, lambda line: None)
    fresh, own = (read_cell(cell.path(plan.results)) or {} for cell in cells)
    assert fresh["notes"]["mixture_parameters"] == own["trained_parameters"]
    one_rank = fresh["trained_parameters"] / fresh["notes"]["r"]
    assert abs(fresh["trained_parameters"] - own["trained_parameters"]) <= one_rank / 2


def test_invariant_experts_of_the_mixture_become_cells(toy: SharedWork, tmp_path: Path) -> None:
    plan, own = RunPlan(tmp_path / "results", rates=[0.01]), toy_cell(CHOSEN, MIXTURE_ARM, ARMS[MIXTURE_ARM])
    assert expert_cells(own, plan.results) == []
    run_cells([own], toy, plan, lambda line: None)
    cells = expert_cells(own, plan.results)
    chosen = (read_cell(own.path(plan.results)) or {})["notes"]["experts"]
    assert [cell.arm for cell in cells] == [f"expert-{name}" for name in chosen]
    assert run_cells(cells[:1], toy, plan, lambda line: None) == 0


def test_invariant_the_choice_is_the_arm_with_the_least_nll_of_held_out_shots(
    toy: SharedWork, tmp_path: Path
) -> None:
    plan, said = RunPlan(tmp_path / "results", rates=[0.003, 0.01]), []
    choice = toy_cell(CHOSEN, "kshot", ARMS["kshot"])
    assert run_cells([choice], toy, plan, said.append) == 1
    assert "got none of base: run it first" in said[-1]
    cells = [toy_cell(CHOSEN, arm, ARMS[arm]) for arm in CHOICES]
    assert run_cells([*cells, choice], toy, plan, said.append) == 0, said
    stored = {cell.arm: read_cell(cell.path(plan.results)) or {} for cell in cells}
    held_out = {
        arm: min(sum(trial["nll"]) / 2 for trial in found["rate"]["tried"]) for arm, found in stored.items()
    }
    best = min(held_out, key=held_out.__getitem__)
    found = read_cell(choice.path(plan.results)) or {}
    assert found["notes"]["held_out_nll"] == pytest.approx(held_out)
    assert (found["arm"], found["notes"]["chosen"]) == ("kshot", best)
    assert found["predictions"] == stored[best]["predictions"]
    assert run_cells([choice], toy, plan, lambda line: pytest.fail(line)) == 0
    assert reproduce_cells([choice], toy, plan, said.append) == 0
    assert said[-1].endswith(SAME)


def test_invariant_leaking_adapters_are_left_out(toy: SharedWork) -> None:
    recipe = CHOSEN.model_copy(update={"leaks": ("a*", "zz")})
    cell = toy_cell(recipe, "base", ARMS["base"])
    assert toy.setting(cell).bank.names == ["bb", "cc", "dd", "ee"]
    assert [score.name for score in toy.setting(cell).scores] == ["bb", "cc", "dd", "ee"]


def test_a_model_that_has_diverged_is_no_result(toy: SharedWork) -> None:
    lm = toy.fresh_model()
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(AdapterError, match="expected likelihoods that are numbers"):
        measure(lm, toy.rows_of(WRITTEN).test, WRITTEN)
