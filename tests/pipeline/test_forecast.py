"""The forecast of a run: its counts are what the stages process, and it leaves the run folder alone."""

import json
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import Tensor

from kshot.config import read_task
from kshot.corpus import text_of
from kshot.errors import ConfigError
from kshot.experts.shared_prompts import shares_prompts
from kshot.pipeline import run
from kshot.pipeline.arms import ARMS
from kshot.pipeline.choice_stage import choice_reads, run_choice
from kshot.pipeline.data_stage import data_reads, run_data
from kshot.pipeline.evaluation_stage import arm_reads, run_arm
from kshot.pipeline.experts_stage import experts_reads, run_experts
from kshot.pipeline.forecast import forecast_run
from kshot.pipeline.forecast.amounts import Amount, training_range
from kshot.pipeline.forecast.counter import WorkCounter
from kshot.pipeline.forecast.forecast import UNSEEN_HIGH, UNSEEN_LOW, StageForecast, seconds_of
from kshot.pipeline.forecast.plan import plan_run
from kshot.pipeline.forecast.probe import Probe
from kshot.pipeline.forecast.rates import Rate
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.training_stage import run_training, training_reads
from kshot.progress import Silent
from kshot.run_folder import RunFolder

from ..tiny_task import change_task, tiny_rows, write_rows


class _Tokens:
    """Counts real tokens that go through a base model: in passes of one token a row, and in others."""

    def __init__(self, inputs: Inputs) -> None:
        self._pad, self.of = inputs.lm.pad_id, Counter[str]()
        inputs.lm.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: object, args: tuple[object, ...], options: dict[str, Tensor]) -> None:
        ids = options["input_ids"]
        decoded = ids.shape[1] == 1
        self.of["decoded" if decoded else "read"] += int((ids != self._pad).sum())
        if not decoded:
            self.of["rows read"] += len(ids)

    @contextmanager
    def fresh(self):
        self.of.clear()
        yield self.of


def _total(amounts: list[Amount], *kinds: str) -> tuple[int, int]:
    chosen = [one for one in amounts if one.kind in kinds]
    return sum(one.low for one in chosen), sum(one.high for one in chosen)


@pytest.mark.parametrize("scorer", ["exact_match", "multiple_choice"])
def test_counts_equal_what_the_stages_process(task: Path, tmp_path: Path, scorer: str) -> None:
    if scorer == "multiple_choice":
        choices = {"choices": ["one two", "three", "four five six"], "label": 0}
        for name, rows in {"shots": tiny_rows(4), "test": tiny_rows(6, start=10)}.items():
            write_rows(task.parent / f"{name}.jsonl", [row | choices for row in rows])
    change_task(task, scorer=scorer, evaluation__folds=2, evaluation__fold_epochs=1.0)
    generates = scorer == "exact_match"
    inputs = Inputs(read_task(task), Silent())
    folder, tokens = RunFolder(tmp_path / "run"), _Tokens(inputs)
    before = WorkCounter(inputs, folder.root, data_is_there=False)

    longest = max(shot.longest for shot in before.asked)
    with tokens.fresh() as used:
        shares_prompts(inputs.lm.model, longest)
        probing = used["read"]
    planned = before.amounts("experts")
    with tokens.fresh() as used, folder.stage("experts", experts_reads(inputs)) as draft:
        run_experts(inputs, folder, draft)
    assert _total(planned, "score") == (used["read"] - probing,) * 2
    assert 0 <= used["decoded"] <= _total(planned, "score_answer")[1]
    assert (used["decoded"] > 0) == generates

    characters = sum(len(text_of(row)) for row in inputs.pool)
    assert before.amounts("data") == [Amount("embed", characters, characters)]
    with folder.stage("data", data_reads(inputs)) as draft:
        run_data(inputs, draft)
    assert before.amounts("data") == [Amount("embed", 0, 0)]

    after = WorkCounter(inputs, folder.root, data_is_there=True)
    for stage, kind in (("single", "train_single"), ("expert", "train_mixture")):
        (amount,) = after.amounts(stage)
        with tokens.fresh() as used, folder.stage(stage, training_reads(inputs, folder, stage)) as draft:
            run_training(inputs, folder, stage, draft)
        assert amount == Amount(kind, used["read"], used["read"])

    planned = after.amounts("choice")
    with tokens.fresh() as used, folder.stage("choice", choice_reads(inputs, folder)) as draft:
        run_choice(inputs, folder, draft)
    assert _total(planned, "train_mixture", "read_single", "read_mixture") == (used["read"],) * 2

    for arm in ARMS:
        planned = after.amounts(f"eval/{arm}")
        with tokens.fresh() as used, folder.stage(f"eval/{arm}", arm_reads(inputs, folder, arm)) as draft:
            run_arm(inputs, folder, arm, draft)
        begun = len(inputs.test) if generates else 0  # the last token of a prompt begins its answer
        low, high = _total(planned, "read_single", "read_mixture")
        if arm == "tuned_mixture":  # whose answers are read again, if there are any, maybe in other tokens
            again = planned.pop().low if generates else 0
            others = 2 * len(inputs.test) if generates else 0
            assert low - again <= used["read"] - begun <= high + others
        else:
            assert low == high == used["read"] - begun
        assert used["decoded"] + begun <= _total(planned, "answer_single", "answer_mixture")[1]


def test_what_is_scored_already_is_not_counted(task: Path, tmp_path: Path) -> None:
    run(task, tmp_path / "run", until="experts")
    change_task(task, experts__num_experts=2)
    inputs = Inputs(read_task(task), Silent())
    assert WorkCounter(inputs, tmp_path / "run", data_is_there=False).pending == 0
    assert WorkCounter(inputs, tmp_path / "other", data_is_there=False).pending == 5


def _bytes(folder: Path) -> dict[str, tuple[bytes, float]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in files}


def test_a_forecast_of_a_whole_run(task: Path, tmp_path: Path) -> None:
    forecast = forecast_run(task, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert [stage.stage for stage in forecast.stages][:5] == ["experts", "data", "single", "expert", "choice"]
    assert not any(stage.reused for stage in forecast.stages)
    assert all(stage.seconds and 0 <= stage.seconds[0] <= stage.seconds[1] for stage in forecast.stages)
    assert forecast.seconds[1] > 0
    assert forecast.disk_bytes > 0
    assert forecast.memory_bytes > max(stage.memory_bytes for stage in forecast.stages) > 0
    assert json.loads(json.dumps(forecast.to_json()))["stages"][0]["stage"] == "experts"


def test_what_is_finished_is_reused_and_left_alone(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def ahead() -> list[str]:
        return [stage.name for stage in plan_run(Inputs(read_task(task), Silent()), out) if not stage.reused]

    assert ahead() == ["experts", "data", "single", "expert", "choice", *(f"eval/{arm}" for arm in ARMS)]
    run(task, out)
    before = _bytes(out)
    finished = forecast_run(task, out)
    assert all(stage.reused for stage in finished.stages)
    assert (finished.seconds, finished.probe_seconds) == ((0.0, 0.0), 0.0)  # nothing was probed

    change_task(task, data__budget=9)
    again = ["single", "expert", "choice", "eval/best_single_tuned", "eval/tuned_mixture"]
    assert ahead() == ["data", *again]
    change_task(task, data__budget=10, training__learning_rate=0.02)
    changed = forecast_run(task, out)
    assert [stage.stage for stage in changed.stages if not stage.reused] == again
    assert changed.stages[0].seconds == (0.0, 0.0)
    (trained,) = next(stage for stage in changed.stages if stage.stage == "expert").amounts
    assert trained.low == trained.high  # the selected rows are there
    assert _bytes(out) == before


def test_folds_cost_trainings(task: Path, tmp_path: Path) -> None:
    change_task(task, test=None)

    def stages() -> dict[str, StageForecast]:
        return {one.stage: one for one in forecast_run(task, tmp_path / "run").stages}

    without = stages()["choice"]  # four shots are too few
    assert (without.amounts, without.seconds, without.memory_bytes) == ((), (0.0, 0.0), 0)
    change_task(task, evaluation__folds=4, evaluation__fold_epochs=1.0, evaluation__fold_single=True)
    found = stages()
    (once,) = found["expert"].amounts
    by_kind = {amount.kind: amount for amount in found["choice"].amounts}
    for kind in ("train_mixture", "train_single"):
        assert 3 * once.low < by_kind[kind].low < 4 * once.low
    assert found["choice"].seconds
    assert found["choice"].seconds[1] > 0 < found["choice"].memory_bytes


def test_a_forecast_refuses_what_a_run_refuses(task: Path, tmp_path: Path) -> None:
    change_task(task, evaluation__folds=5)
    with pytest.raises(ConfigError, match=r"evaluation\.folds must be at most 4"):
        forecast_run(task, tmp_path / "run")
    change_task(task, evaluation__folds=0)
    change_task(task, data__budget=1000)
    with pytest.raises(ConfigError, match=r"data\.budget must be in \[0, "):
        forecast_run(task, tmp_path / "run")


def test_amounts_times_rates() -> None:
    probe = Probe({"read_single": Rate(0.1, 0.2), "answer_single": Rate(1.0, 3.0)})
    amounts = [Amount("read_single", 10, 10), Amount("answer_single", 1, 5)]
    assert seconds_of(amounts, probe) == (
        pytest.approx(2 * UNSEEN_LOW, abs=0.1),
        pytest.approx(17 * UNSEEN_HIGH, abs=0.1),
    )


def test_rows_that_are_not_selected_yet_are_between_the_quartiles() -> None:
    assert training_range("train_mixture", [5, 5], [], 0, 2.0) == Amount("train_mixture", 20, 20)
    sampled = [10, 20, 30, 40]
    assert training_range("train_mixture", [5], sampled, 3, 1.0) == Amount("train_mixture", 65, 125)
