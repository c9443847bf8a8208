"""The command: which cells it runs, where they are stored, what it refuses, and the plan."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from suite.ablations import ABLATIONS, arms_of
from suite.arms import ARMS
from suite.options import ABLATION_RESULTS, RESULTS, cells_of, parse, run_plan
from suite.own.choice import choose_experts
from suite.own_settings import MixtureArm
from suite.plan import hours_by_cell, in_words
from suite.runner import RunPlan
from suite.shared_work import SharedWork
from suite_toy import CHOSEN, WRITTEN, toy_cell

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = spec_from_file_location(f"{name}_script", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_golden_cells() -> None:
    cells = cells_of(parse(["--tasks", "piqa,boolq", "--arms", "base,kshot", "--seeds", "0,2"]))
    names = [(cell.recipe.name, cell.seed, cell.arm) for cell in cells]
    assert names[:5] == [
        ("piqa", 0, "base"),
        ("piqa", 0, "kshot"),
        ("piqa", 2, "base"),
        ("piqa", 2, "kshot"),
        ("boolq", 0, "base"),
    ]
    assert len(cells_of(parse([]))) == 12 * 3 * len(ARMS)


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ([], RESULTS),
        (["--ablation", "top_k"], ABLATION_RESULTS / "top_k"),
        (["--limit", "8", "--work", "w"], Path("w/results-8-rows/suite")),
        (["--base", "org/Big-7B"], RESULTS.parent / "suite-org-Big-7B"),
        (["--results", "r", "--limit", "8"], Path("r")),
    ],
)
def test_golden_places_of_results(arguments: list[str], place: Path) -> None:
    plan = run_plan(parse(arguments), arguments)
    assert plan.results == place
    assert plan.command == " ".join(["python", "benchmarks/suite.py", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "piqua"], "got piqua"),
        (["--arms", ""], "got nothing"),
        (["--seeds", "7"], "expected some of 0, 1, 2, got 7"),
        (["--limit", "0"], "expected a whole number from 1 on, got 0"),
        (["--rates", "fast"], "expected rates such as 1e-3,2e-3, got fast"),
        (["--rates", "-1"], "expected"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


def test_the_command_plans_and_needs_a_pool(
    monkeypatch: pytest.MonkeyPatch, toy: SharedWork, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main = script("suite").main
    asked = ["--tasks", "piqa", "--results", str(tmp_path), "--bank", toy.bank_source, "--plan"]
    assert main(asked) == 1  # the toy data has no such task
    assert "error: " in capsys.readouterr().err
    monkeypatch.delenv("KSHOT_DATA")
    with pytest.raises(SystemExit, match="expected open rows, got none"):
        main(asked)


def test_the_table_needs_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = script("suite_table").main
    assert main([str(tmp_path / "none")]) == 1
    assert "expected cells in" in capsys.readouterr().err
    assert main([str(tmp_path), str(tmp_path / "page.md")]) == 0
    assert "No cell is finished yet." in (tmp_path / "page.md").read_text()
    assert "suite" in sys.modules


def test_invariant_the_plan_counts_shared_work_once_and_tuning_more(toy: SharedWork, tmp_path: Path) -> None:
    plan = RunPlan(tmp_path)
    cells = [
        toy_cell(r, arm, ARMS[arm]) for r in (CHOSEN, WRITTEN) for arm in ("base", "best_single", "fresh")
    ]
    hours = hours_by_cell(cells, toy, plan)
    assert [cell.arm for cell, _ in hours] == ["base", "best_single", "fresh"] * 2
    base, best, fresh = (value for _, value in hours[:3])
    assert best < base  # the first cell scores the bank
    assert fresh > best
    assert in_words(hours).splitlines()[-1].split()[:2] == ["total", "6"]
    one_rate = hours_by_cell(cells, toy, RunPlan(tmp_path, rates=[0.01]))
    assert one_rate[2][1] < fresh
    path = cells[2].path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert len(hours_by_cell(cells, toy, plan)) == 5


def test_invariant_every_ablation_changes_settings_that_exist() -> None:
    for name in ABLATIONS:
        arms = arms_of(name)
        for info, _ in arms.values():
            MixtureArm.model_validate(dict(info.settings or {}))
        told = [
            (sorted((info.settings or {}).items()), start.model_dump_json()) for info, start in arms.values()
        ]
        assert len({str(one) for one in told}) == len(arms), name


@pytest.mark.parametrize("method", ["paper", "balanced", "robust", "random", "rp", "ra", "rp+ra"])
def test_invariant_every_selection_takes_as_many_experts_as_asked_for(toy: SharedWork, method: str) -> None:
    setting = toy.setting(toy_cell(CHOSEN, "any", ARMS["base"]))
    wanted = MixtureArm.model_validate({"method": method, "num_experts": 3})
    names = choose_experts(setting, wanted)
    assert len(set(names)) == 3
    assert set(names) <= set(setting.bank.names)
    if method == "rp":
        by_ppl = sorted(setting.scores, key=lambda score: score.reasoning_ppl)
        assert names == [score.name for score in by_ppl[:3]]
