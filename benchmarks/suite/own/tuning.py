"""Tune what an arm has put on the base model, on the same shots and rows as every other arm."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from kshot.training import fit
from suite.arm import Built, Setting, training_rows


def as_it_is(setting: Setting, model: nn.Module, notes: Mapping[str, Any]) -> Built:
    """Return a model that is not tuned."""
    setting.lm.model = model.eval()
    return Built(model, 0, dict(notes))


def tuned(setting: Setting, model: nn.Module, notes: Mapping[str, Any]) -> Built:
    """Train what requires a gradient, and return the model."""
    setting.lm.model = model
    result = fit(setting.lm, training_rows(setting), setting.training, seed=setting.seed)
    told = {"num_steps": len(result.losses), "num_tokens": result.num_tokens, "train_seconds": result.seconds}
    losses = {"first_loss": result.losses[0], "last_loss": result.losses[-1]}
    return Built(setting.lm.model, result.trainable_parameters, {**notes, **told, **losses})
