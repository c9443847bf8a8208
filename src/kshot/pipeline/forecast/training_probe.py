"""Optimiser steps, timed, and the bytes that they keep."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kshot.config import TrainingConfig
from kshot.language_model import LanguageModel
from kshot.pipeline.forecast.rates import REPEATS, Rate
from kshot.prompts import TokenisedExample
from kshot.training import fit

MOMENTS = 2  # of AdamW, each as large as the weights


@dataclass(frozen=True, slots=True)
class TrainingProbe:
    """What a step was.

    Attributes:
        rate: Seconds a token.
        weight_bytes: Of what is trained.
        kept_bytes: A padded token, for the backward pass.
    """

    rate: Rate
    weight_bytes: int
    kept_bytes: float

    def step_bytes(self, tokens: int) -> int:
        """Return what training takes beside model and weights, for a micro-batch of so many padded tokens."""
        return int(self.weight_bytes * (1 + MOMENTS) + self.kept_bytes * tokens)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint: weights and moments."""
        return self.weight_bytes * (1 + MOMENTS)


def probe_training(
    lm: LanguageModel, rows: Sequence[TokenisedExample], settings: TrainingConfig
) -> TrainingProbe:
    """Train for a step to warm up, then for some that are timed; `lm.model` is changed.

    Args:
        lm: With its experts attached.
        rows: One micro-batch.
        settings: Of the task.
    """
    one_batch = settings.model_copy(
        update={
            "per_device_train_batch_size": len(rows),
            "gradient_accumulation_steps": 1,
            "num_train_epochs": 1 + REPEATS,
            "report_to": "none",
        }
    )
    trained = [weight for weight in lm.model.parameters() if weight.requires_grad]
    steps = _StepSeconds()
    with _kept_bytes(lm.model) as kept:
        fit(lm, rows, one_batch, callbacks=[steps])
    tokens, padded = sum(map(len, rows)), len(rows) * max(map(len, rows))
    timed = steps.seconds[1:]
    return TrainingProbe(
        Rate(min(timed) / tokens, max(timed) / tokens),
        sum(weight.numel() * weight.element_size() for weight in trained),
        max(kept) / padded,
    )


class _StepSeconds(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._started = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds.append(time.perf_counter() - self._started)


@contextmanager
def _kept_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Yield the bytes that each forward pass keeps for its backward pass, weights not counted."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    passes: list[dict[int, int]] = [{}]
    totals: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            passes[-1][storage.data_ptr()] = storage.nbytes()
        return tensor

    handle = model.register_forward_pre_hook(lambda module, inputs: passes.append({}))
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield totals
    finally:
        handle.remove()
        totals += [sum(sizes.values()) for sizes in passes]
