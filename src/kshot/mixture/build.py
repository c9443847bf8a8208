"""From LoRA experts and a base model to a mixture ready to be trained."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture.config import MixtureConfig
from kshot.mixture.expert import ExpertOrigin, LoraExpert, LoraFactors, check_fits
from kshot.mixture.layer import MixtureLinear
from kshot.mixture.model import MixtureModel, mixture_layers
from kshot.mixture.module_groups import ModuleGroup
from kshot.mixture.read import load_expert
from kshot.mixture.router import leading_direction
from kshot.mixture.router_settings import Granularity, Scope, Start


def build_mixture(
    base_model: nn.Module,
    experts: Mapping[str, str | Path | LoraExpert],
    *,
    top_k: int | None = None,
    router_scope: Scope = "module",
    router_granularity: Granularity = "token",
    router_start: Start = "random",
    expert_scores: Mapping[str, float] | None = None,
    router_temperature: float = 1.0,
    router_init_std: float = 0.02,
    router_dropout: float = 0.0,
    null_expert: bool = False,
    shared_r: int = 0,
    shared_alpha: float | None = None,
    load_balancing: float = 0.0,
    z_loss: float = 0.0,
    fixed_gates: Sequence[float] | None = None,
    convert_rank: int | None = None,
    seed: int = 0,
    adapter_name: str = "default",
) -> PeftModel:
    """Put LoRA experts behind a token-wise router, as one PEFT adapter of `base_model`.

    Experts start as in their folders; they may differ in rank, alpha and modules. Where an expert lacks a
    module that another has, choosing it there adds nothing. All checks come before the model is touched.

    Args:
        base_model: A model, changed in place; or a PeftModel with mixtures, to which this one is added beside
            the others and stays frozen until `set_adapter` switches to it.
        experts: By name, in the order of the stack: PEFT folders, Hub ids (`org/name@revision`), or experts
            already read.
        top_k: Experts a token uses; None: 2, or 1 if there is one expert.
        router_scope: See `MixtureConfig`, as for all settings below.
        router_granularity: A decision for each token, or for each sequence.
        router_start: Random, or from the experts' own directions.
        expert_scores: What the router starts from: a score for each expert, in nats, more is better. The null
            expert starts as low as the worst of them.
        router_temperature: What logits are divided by.
        router_init_std: Standard deviation of a random start.
        router_dropout: Probability that a choice is hidden from a token in training.
        null_expert: Let the router choose none.
        shared_r: Rank of a fresh LoRA that is always on; 0 for none.
        shared_alpha: Its alpha.
        load_balancing: Coefficient in `router_loss`.
        z_loss: Coefficient in `router_loss`.
        fixed_gates: Constant gates in place of a router, one an expert.
        convert_rank: Adapters that are no plain LoRA (DoRA, LoHa, ...) are converted to one of this rank,
            with the error in the expert's origin; None refuses them.
        seed: Of the router's and the shared LoRA's start.
        adapter_name: What PEFT calls the mixture.

    Returns:
        The PeftModel; the mixture's parameters, and they alone, require a gradient.

    Raises:
        ConfigError: No experts, or a setting out of range or without effect.
        AdapterError: An expert cannot be read or does not fit the base model, or that has other adapters.
    """
    if not experts:
        raise ConfigError("experts must name at least 1 LoRA, got none: pass {name: folder}")
    _check_adapters(base_model, adapter_name)
    _check_adapter_name(base_model, adapter_name)
    base = base_model.get_base_model() if isinstance(base_model, PeftModel) else base_model
    loaded = [load_expert(source, name, base, convert_rank=convert_rank) for name, source in experts.items()]
    for expert in loaded:
        check_fits(expert, base)
    config = MixtureConfig(
        task_type=_task_type(base),
        expert_names=list(experts),
        module_groups=_group_modules(loaded),
        expert_origins=_origins(loaded),
        top_k=top_k,
        router_scope=router_scope,
        router_granularity=router_granularity,
        router_start=router_start,
        router_prior=_prior(experts, expert_scores, null_expert),
        router_temperature=router_temperature,
        router_init_std=router_init_std,
        router_dropout=router_dropout,
        null_expert=null_expert,
        shared_r=shared_r,
        shared_alpha=shared_alpha,
        load_balancing=load_balancing,
        z_loss=z_loss,
        fixed_gates=None if fixed_gates is None else [float(gate) for gate in fixed_gates],
        seed=seed,
    )
    if isinstance(base_model, PeftModel):
        model = base_model
        model.add_adapter(adapter_name, config)
    else:
        model = get_peft_model(base_model, config, adapter_name=adapter_name)
    _copy_experts(model, adapter_name, loaded)
    return model


def _origins(experts: Sequence[LoraExpert]) -> list[ExpertOrigin]:
    origins = [expert.origin for expert in experts if expert.origin is not None]
    return origins if len(origins) == len(experts) else []


def _prior(
    experts: Mapping[str, str | Path | LoraExpert], scores: Mapping[str, float] | None, null_expert: bool
) -> list[float] | None:
    """Scores in the order of the stack, less their mean: a softmax does not see it, a z-loss would."""
    if scores is None:
        return None
    if set(scores) != set(experts):
        raise ConfigError(
            f"expert_scores must have one score an expert, {sorted(experts)}, got {sorted(scores)}"
        )
    prior = [float(scores[name]) for name in experts]
    if not all(math.isfinite(score) for score in prior):
        raise ConfigError(f"expert_scores must be finite, got {dict(scores)}: leave that expert out")
    prior += [min(prior)] * null_expert
    mean = sum(prior) / len(prior)
    return [score - mean for score in prior]


def _check_adapters(base_model: nn.Module, adapter_name: str) -> None:
    if not isinstance(base_model, PeftModel):
        if any(isinstance(module, BaseTunerLayer) for module in base_model.modules()):
            raise AdapterError("expected a base model without adapters, got some: call `unload()` first")
    elif not isinstance(base_model.base_model, MixtureModel):
        raise AdapterError(
            f"expected a base model or a mixture, got a PeftModel of {type(base_model.base_model).__name__}: "
            "call `unload()` first"
        )
    elif adapter_name in base_model.peft_config:
        raise ConfigError(
            f"adapter_name must be new, got {adapter_name!r}: choose another or delete that one"
        )


def _check_adapter_name(base_model: nn.Module, adapter_name: str) -> None:
    """Refuse names that PEFT takes, and then drops weights by: keys with another adapter's name (#3282)."""
    parts = {part for module, _ in base_model.named_modules() for part in module.split(".")}
    in_prefix = adapter_name in MixtureModel.prefix
    if adapter_name.isdigit() or "." in adapter_name or adapter_name in parts or in_prefix:
        raise ConfigError(
            "adapter_name must not be empty, digits, dotted, or part of a module's name, "
            f"got {adapter_name!r}: rename it, or PEFT loses weights when saving"
        )


def _task_type(base_model: nn.Module) -> TaskType | None:
    """CAUSAL_LM for models that generate without an encoder, which is what PEFT's wrapper for it needs."""
    generates = bool(getattr(base_model, "can_generate", bool)())
    encodes = bool(getattr(getattr(base_model, "config", None), "is_encoder_decoder", False))
    return TaskType.CAUSAL_LM if generates and not encodes else None


def _group_modules(experts: Sequence[LoraExpert]) -> list[ModuleGroup]:
    """Collect modules in which all experts have the same ranks and scalings."""
    groups: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for module in sorted({module for expert in experts for module in expert.factors}):
        factors = [expert.factors.get(module) for expert in experts]
        sizes = tuple((0, 0.0) if factor is None else (factor.r, factor.scaling) for factor in factors)
        groups.setdefault(sizes, []).append(module)
    return [
        ModuleGroup(modules=modules, ranks=[r for r, _ in sizes], scalings=[scaling for _, scaling in sizes])
        for sizes, modules in groups.items()
    ]


@torch.no_grad()
def _copy_experts(model: PeftModel, adapter_name: str, experts: Sequence[LoraExpert]) -> None:
    for module, layer in mixture_layers(model, adapter_name).items():
        A_RD, B_OR = layer.mixture_A[adapter_name], layer.mixture_B[adapter_name]
        factors = [expert.factors[module] for expert in experts if module in expert.factors]
        A_RD.copy_(torch.cat([factor.A_rI.to(A_RD) for factor in factors]))
        B_OR.copy_(torch.cat([factor.B_Or.to(B_OR) for factor in factors], dim=1))
        if layer.mixture_config[adapter_name].router_start == "directions":
            _start_from_directions(layer, adapter_name, [expert.factors.get(module) for expert in experts])


def _start_from_directions(
    layer: MixtureLinear, adapter_name: str, factors: Sequence[LoraFactors | None]
) -> None:
    """Set each expert's row of the router to its leading direction; 0 where it lacks the module."""
    if adapter_name in layer.mixture_router:
        weight_ED = layer.mixture_router[adapter_name].weight
        weight_ED.zero_()  # type: ignore[operator]
        for row_D, factor in zip(weight_ED, factors, strict=False):  # type: ignore[arg-type]
            if factor is not None:
                row_D.copy_(leading_direction(factor.A_rI, factor.B_Or))
