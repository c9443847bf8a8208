"""Arrow (arXiv 2405.11157) by PEFT: a token goes to the experts whose leading direction it lies along.

Nothing is trained to route. PEFT leaves the experts frozen and its router's own LoRA, which no forward uses,
trainable; with the experts made trainable after a first pass, which fixes the directions, they can be tuned.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import ArrowConfig, PeftModel, create_arrow_model
from torch import nn

from kshot.mixture import LoraExpert
from suite.arm import Built, Setting
from suite.own.tuning import as_it_is, tuned
from suite.peers.group import chosen_experts, num_weights
from suite.peers.one_shape import check_plain_layers, write_one_shape

TOP_K = ArrowConfig().top_k  # 3; temperature is left at 1 too


def build(setting: Setting) -> Built:
    """Route among the chosen experts as they are."""
    experts = chosen_experts(setting)
    model = route(setting.lm.model, experts, setting.work)
    return as_it_is(setting, model, _notes(experts))


def build_tuned(setting: Setting) -> Built:
    """Route as `build` does, and tune the experts on shots and rows."""
    experts = chosen_experts(setting)
    model = route(setting.lm.model, experts, setting.work)
    model.set_requires_grad([f"task_{number}" for number in range(len(experts))])
    built = tuned(setting, model, _notes(experts))
    return replace(built, trained_parameters=num_weights(experts.values()))


def route(base: nn.Module, experts: Mapping[str, LoraExpert], work: Path) -> PeftModel:
    """Put the experts on a base behind Arrow, all frozen, directions computed.

    Raises:
        AdapterError: An expert does not fit the base, or the base is quantised.
    """
    folders = write_one_shape(experts, base, work / "experts")
    config = ArrowConfig(top_k=min(TOP_K, len(folders)), rng_seed=0)
    model: PeftModel = create_arrow_model(
        base,  # type: ignore[arg-type]
        [str(folder) for folder in folders],
        config,
    )
    check_plain_layers(model)
    model.set_requires_grad("arrow_router", requires_grad=False)
    ids_BT = torch.tensor([[0, 1]], device=next(base.parameters()).device)
    with torch.no_grad():  # a first pass in inference mode would leave directions that training cannot use
        model.eval()(input_ids=ids_BT)
    return model


def _notes(experts: Mapping[str, LoraExpert]) -> dict[str, Any]:
    return {"experts": list(experts), "top_k": min(TOP_K, len(experts))}
