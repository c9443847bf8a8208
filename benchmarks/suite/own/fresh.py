"""Arms that need no bank: a fresh LoRA, of one expert's rank and of the mixture's size."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn

from kshot.mixture.expert import linear_shape
from suite.arm import Built, Setting
from suite.own.choice import best_single
from suite.own.mixture import num_parameters
from suite.own.tuning import tuned
from suite.own_settings import MixtureArm

ALPHA_OVER_R = 2  # as the bank's adapters: the usual choice of PEFT recipes


def build_one(setting: Setting) -> Built:
    """Train a LoRA of the best expert's rank and modules."""
    return _build(setting, setting.bank[best_single(setting.scores)].entry.r)


def build_same_count(setting: Setting, settings: Mapping[str, Any]) -> Built:
    """Train a LoRA with as many weights as a mixture, so that these are not taken for knowledge.

    Args:
        setting: What there is.
        settings: Of the `MixtureArm` that is matched.
    """
    wanted = num_parameters(setting, MixtureArm.model_validate(dict(settings)))
    a_rank = sum(sum(shape) for shape in _shapes(setting.lm.model, _modules(setting)))
    built = _build(setting, max(1, round(wanted / a_rank)))
    return Built(built.model, built.trained_parameters, {**built.notes, "mixture_parameters": wanted})


def _build(setting: Setting, r: int) -> Built:
    modules = _modules(setting)
    config = LoraConfig(
        r=r,
        lora_alpha=ALPHA_OVER_R * r,
        target_modules=modules,
        lora_dropout=0.0,
        task_type=TaskType.CAUSAL_LM,
    )
    torch.manual_seed(setting.seed)
    model = get_peft_model(setting.lm.model, config)
    return tuned(setting, model, {"r": r, "target_modules": modules})


def _modules(setting: Setting) -> list[str]:
    """Return what the adapters of the bank change."""
    return sorted({module for adapter in setting.bank for module in adapter.entry.target_modules})


def _shapes(model: nn.Module, names: list[str]) -> list[tuple[int, int]]:
    found = (linear_shape(module) for name, module in model.named_modules() if name.split(".")[-1] in names)
    return [shape for shape in found if shape is not None]
