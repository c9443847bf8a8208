"""From LoRA experts and a base model to a mixture ready to be trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture.config import MixtureConfig, ModuleGroup
from kshot.mixture.expert import LoraExpert, check_fits, read_lora
from kshot.mixture.model import MixtureModel, mixture_layers


def build_mixture(
    base_model: nn.Module,
    experts: Mapping[str, str | Path | LoraExpert],
    *,
    top_k: int | None = None,
    router_temperature: float = 1.0,
    router_init_std: float = 0.02,
    null_expert: bool = False,
    shared_r: int = 0,
    shared_alpha: float | None = None,
    load_balancing: float = 0.0,
    fixed_gates: Sequence[float] | None = None,
    seed: int = 0,
    adapter_name: str = "default",
) -> PeftModel:
    """Put LoRA experts behind a token-wise router, as one PEFT adapter of `base_model`.

    Experts start as in their folders; they may differ in rank, alpha and modules. Where an expert lacks a
    module that another has, choosing it there adds nothing. All checks come before the model is touched.

    Args:
        base_model: A model, changed in place; or a PeftModel with mixtures, to which this one is added beside
            the others and stays frozen until `set_adapter` switches to it.
        experts: By name, in the order of the stack: PEFT LoRA folders, or experts already read.
        top_k: Experts a token uses; None: 2, or 1 if there is one expert.
        router_temperature: See `MixtureConfig`, as for all settings below.
        router_init_std: Standard deviation of the router's start.
        null_expert: Let the router choose none.
        shared_r: Rank of a fresh LoRA that is always on; 0 for none.
        shared_alpha: Its alpha.
        load_balancing: Coefficient of `router_loss`.
        fixed_gates: Constant gates in place of a router, one an expert.
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
    loaded = [_load(name, source) for name, source in experts.items()]
    base = base_model.get_base_model() if isinstance(base_model, PeftModel) else base_model
    for expert in loaded:
        check_fits(expert, base)
    config = MixtureConfig(
        task_type=_task_type(base),
        expert_names=list(experts),
        module_groups=_group_modules(loaded),
        top_k=top_k,
        router_temperature=router_temperature,
        router_init_std=router_init_std,
        null_expert=null_expert,
        shared_r=shared_r,
        shared_alpha=shared_alpha,
        load_balancing=load_balancing,
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


def _load(name: str, source: str | Path | LoraExpert) -> LoraExpert:
    if isinstance(source, LoraExpert):
        return source
    return read_lora(source, name)


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
