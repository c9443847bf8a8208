"""Training stops when held-out rows no longer gain, and goes back to its best epoch."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from kshot.bank.best_epoch import BestEpoch


def _run(model: nn.Linear, nll: Sequence[float], patience: int) -> tuple[BestEpoch, TrainerControl]:
    """Add 1 to the weight before every epoch, whose NLL is given."""
    values = iter(nll)
    best = BestEpoch(model, lambda: next(values), patience)
    control = TrainerControl()
    arguments = TrainingArguments(output_dir="unused", report_to="none", use_cpu=True)
    for _ in nll:
        with torch.no_grad():
            model.weight.add_(1.0)
        best.on_epoch_end(arguments, TrainerState(), control)
        if control.should_training_stop:
            break
    return best, control


@pytest.fixture
def model() -> nn.Linear:
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    model.bias.requires_grad_(False)
    return model.train()


def test_the_weights_of_the_best_epoch_come_back(model: nn.Linear) -> None:
    best, control = _run(model, [3.0, 1.0, 2.0, 2.5, 0.5], patience=2)

    assert control.should_training_stop
    assert best.history == [3.0, 1.0, 2.0, 2.5]
    assert best.epoch == 2
    assert model.weight.item() == 4.0
    best.restore()
    assert model.weight.item() == 2.0
    assert model.training


def test_a_later_gain_ends_the_patience(model: nn.Linear) -> None:
    best, control = _run(model, [3.0, 3.5, 1.0, 1.5, 0.5], patience=2)

    assert not control.should_training_stop
    assert best.epoch == 5


def test_equal_epochs_are_no_gain(model: nn.Linear) -> None:
    best, control = _run(model, [2.0, 2.0, 2.0], patience=1)

    assert control.should_training_stop
    assert best.epoch == 1


def test_the_model_is_measured_as_it_is_used() -> None:
    model = nn.Linear(1, 1).train()
    seen: list[bool] = []

    def measure() -> float:
        seen.append(model.training)
        return 1.0

    arguments = TrainingArguments(output_dir="unused", report_to="none", use_cpu=True)
    BestEpoch(model, measure, 1).on_epoch_end(arguments, TrainerState(), TrainerControl())

    assert seen == [False]
    assert model.training
