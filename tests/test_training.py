"""Training is the plain loop, repeats bit by bit, and goes on where it was stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from kshot.config import TrainingConfig
from kshot.errors import ConfigError, MissingExtraError
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture, is_router_parameter, router_loss
from kshot.prompts import TokenisedExample
from kshot.training import fit, parameter_groups

SETTINGS = TrainingConfig(
    learning_rate=1e-2,
    num_train_epochs=3,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    warmup_ratio=0.1,
)
ONE_STEP = TrainingConfig(
    learning_rate=1e-2, num_train_epochs=1, per_device_train_batch_size=2, gradient_accumulation_steps=4
)


@pytest.fixture
def mixture_lm(tiny_model_folder: Path, lora_folder: Any) -> Any:
    """Makes the same mixture of two experts out of three each time."""
    folders = {name: lora_folder(name, seed) for seed, name in enumerate("abc")}

    def make(**options: Any) -> LanguageModel:
        lm = LanguageModel.load(str(tiny_model_folder), device="cpu")
        lm.model = build_mixture(lm.model, folders, **{"top_k": 2, "seed": 0, **options})
        return lm

    return make


@pytest.fixture
def rows(tiny_lm: LanguageModel) -> list[TokenisedExample]:
    """Eight rows of eight lengths."""
    return [tiny_lm.template.encode("say it " * (1 + index % 3), "yes " * (1 + index)) for index in range(8)]


def trainable(lm: LanguageModel) -> dict[str, Tensor]:
    return {
        name: value.detach().clone() for name, value in lm.model.named_parameters() if value.requires_grad
    }


def frozen(lm: LanguageModel) -> dict[str, Tensor]:
    return {
        name: value.detach().clone() for name, value in lm.model.named_parameters() if not value.requires_grad
    }


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def plain_loss(model: nn.Module, rows: list[TokenisedExample]) -> Tensor:
    """Mean NLL over the target tokens of all rows, one row at a time, all logits."""
    total, count = torch.tensor(0.0), 0
    for row in rows:
        logits_TV = model(input_ids=torch.tensor([row.input_ids])).logits[0]
        labels_T = torch.tensor(row.labels)
        total = total + cross_entropy(logits_TV[:-1], labels_T[1:], reduction="sum", ignore_index=-100)
        count += row.target_length
    return total / count


def test_against_plain_cross_entropy(mixture_lm: Any, rows: list[TokenisedExample]) -> None:
    result = fit(mixture_lm(), rows, ONE_STEP)
    assert result.losses == pytest.approx([plain_loss(mixture_lm().model, rows).item()], abs=1e-5)


def test_against_a_plain_step(mixture_lm: Any, rows: list[TokenisedExample]) -> None:
    lm, plain = mixture_lm(), mixture_lm()
    fit(lm, rows, ONE_STEP)
    parameters = [value for value in plain.model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=ONE_STEP.learning_rate, weight_decay=ONE_STEP.weight_decay)
    plain_loss(plain.model.train(), rows).backward()
    torch.nn.utils.clip_grad_norm_(parameters, ONE_STEP.max_grad_norm)
    optimizer.step()
    expected = trainable(plain)
    for name, value in trainable(lm).items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=0)


def test_against_the_load_balancing_loss(mixture_lm: Any, rows: list[TokenisedExample]) -> None:
    """Micro-batches of one row: the loss of the step holds the mean of their balancing losses."""
    settings = TrainingConfig(
        num_train_epochs=1, per_device_train_batch_size=1, gradient_accumulation_steps=8
    )
    plain = mixture_lm(load_balancing=0.5)
    balancing = []
    for row in rows:
        plain.model.train()(input_ids=torch.tensor([row.input_ids]))
        balancing.append(router_loss(plain.model).item())
    expected = plain_loss(mixture_lm().model, rows).item() + sum(balancing) / len(rows)
    assert fit(mixture_lm(load_balancing=0.5), rows, settings).losses == pytest.approx([expected], abs=1e-5)


def test_invariant_same_seed_same_bits(mixture_lm: Any, rows: list[TokenisedExample]) -> None:
    lms = [mixture_lm() for _ in range(3)]
    results = [fit(lm, rows, SETTINGS, seed=seed) for lm, seed in zip(lms, [3, 3, 4], strict=True)]
    assert results[0].losses == results[1].losses
    assert_equal(trainable(lms[0]), trainable(lms[1]))
    assert results[0].losses != results[2].losses  # another order of rows
    assert results[0].losses[-1] < results[0].losses[0]


def test_result(mixture_lm: Any, rows: list[TokenisedExample]) -> None:
    lm = mixture_lm()
    result = fit(lm, rows, SETTINGS)
    assert (len(result.losses), result.num_rows) == (3 * 2, 8)
    assert result.num_tokens == 3 * sum(len(row) for row in rows)
    assert result.trainable_parameters == sum(value.numel() for value in trainable(lm).values())
    assert result.seconds > 0
    assert not lm.model.training


class Stop(TrainerCallback):
    """Fails at a step, as a killed process would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise InterruptedError


@pytest.mark.parametrize("step", [1, 3, 4])
def test_roundtrip_of_a_stopped_run(
    mixture_lm: Any, rows: list[TokenisedExample], tmp_path: Path, step: int
) -> None:
    undisturbed = mixture_lm()
    expected = fit(undisturbed, rows, SETTINGS, seed=3, checkpoints=tmp_path / "undisturbed")
    with pytest.raises(InterruptedError):
        fit(mixture_lm(), rows, SETTINGS, seed=3, checkpoints=tmp_path / "stopped", callbacks=[Stop(step)])
    torch.manual_seed(step)  # a new process would be in another state
    resumed = mixture_lm()
    result = fit(resumed, rows, SETTINGS, seed=3, checkpoints=tmp_path / "stopped")
    assert result.losses == expected.losses
    assert_equal(trainable(resumed), trainable(undisturbed))
    assert_equal(frozen(resumed), frozen(undisturbed))


def test_checkpoints_change_nothing(mixture_lm: Any, rows: list[TokenisedExample], tmp_path: Path) -> None:
    lms = [mixture_lm(), mixture_lm()]
    fit(lms[0], rows, SETTINGS, checkpoints=tmp_path / "checkpoints")
    fit(lms[1], rows, SETTINGS)
    assert_equal(trainable(lms[0]), trainable(lms[1]))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-6"]


def test_a_finished_run_is_not_repeated(
    mixture_lm: Any, rows: list[TokenisedExample], tmp_path: Path
) -> None:
    lms = [mixture_lm(), mixture_lm()]
    results = [fit(lm, rows, SETTINGS, checkpoints=tmp_path) for lm in lms]
    assert results[0].losses == results[1].losses
    assert_equal(trainable(lms[0]), trainable(lms[1]))


@pytest.mark.parametrize("state", [None, '{"epoch": 1'])
def test_a_half_written_checkpoint_is_passed_over(
    mixture_lm: Any, rows: list[TokenisedExample], tmp_path: Path, state: str | None
) -> None:
    undisturbed = mixture_lm()
    fit(undisturbed, rows, SETTINGS, seed=3)
    with pytest.raises(InterruptedError):
        fit(mixture_lm(), rows, SETTINGS, seed=3, checkpoints=tmp_path, callbacks=[Stop(3)])
    half = tmp_path / "checkpoint-4"
    half.mkdir()
    if state is not None:
        (half / "trainer_state.json").write_text(state)
    resumed = mixture_lm()
    fit(resumed, rows, SETTINGS, seed=3, checkpoints=tmp_path)
    assert_equal(trainable(resumed), trainable(undisturbed))


def test_router_has_its_own_rate(mixture_lm: Any, rows: list[TokenisedExample]) -> None:
    lm = mixture_lm()
    settings = ONE_STEP.model_copy(update={"router_learning_rate": 1e-3, "weight_decay": 0.0})
    groups = parameter_groups(lm.model, settings)
    assert [group["lr"] for group in groups] == [1e-2, 1e-3]
    assert sum(len(group["params"]) for group in groups) == len(trainable(lm))
    before = trainable(lm)
    fit(lm, rows, settings)
    for name, value in trainable(lm).items():
        # the first step of Adam moves each weight that has a gradient by the rate itself
        moved = (value - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 if is_router_parameter(name) else 1e-2, rel=0.05), name


def test_one_rate_for_all(mixture_lm: Any) -> None:
    groups = parameter_groups(mixture_lm().model, ONE_STEP)
    assert [group["lr"] for group in groups] == [1e-2, 1e-2]


def test_invariant_only_trainable_parameters_move(mixture_lm: Any, rows: list[TokenisedExample]) -> None:
    lm = mixture_lm()
    still, moving = frozen(lm), trainable(lm)
    fit(lm, rows, SETTINGS)
    assert_equal(frozen(lm), still)
    assert all(not torch.equal(value, moving[name]) for name, value in trainable(lm).items())


def test_gradient_checkpointing_changes_no_weight(mixture_lm: Any, rows: list[TokenisedExample]) -> None:
    lms = [mixture_lm(load_balancing=0.1), mixture_lm(load_balancing=0.1)]
    for lm, checkpointing in zip(lms, [False, True], strict=True):
        fit(lm, rows, ONE_STEP.model_copy(update={"gradient_checkpointing": checkpointing}))
    expected = trainable(lms[0])
    for name, value in trainable(lms[1]).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)


def test_nothing_to_train(tiny_lm: LanguageModel, rows: list[TokenisedExample]) -> None:
    with pytest.raises(ConfigError, match="expected rows and trainable parameters, got 0 rows"):
        fit(tiny_lm, [], SETTINGS)
    tiny_lm.model.requires_grad_(False)
    with pytest.raises(
        ConfigError, match="expected rows and trainable parameters, got 8 rows and 0 parameters"
    ):
        fit(tiny_lm, rows, SETTINGS)


def test_a_missing_logger_is_named(mixture_lm: Any, rows: list[TokenisedExample]) -> None:
    with pytest.raises(
        MissingExtraError, match=r"training.report_to expected the package mlflow, which is not installed"
    ):
        fit(mixture_lm(), rows, ONE_STEP.model_copy(update={"report_to": "mlflow"}))
