"""Arms of kshot: experts chosen by the shots behind a router, tuned together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kshot.config import MixtureSettings
from kshot.mixture import build_mixture, collect_routing, is_router_parameter
from suite.arm import Built, Setting, encode
from suite.own.choice import choose_experts
from suite.own.tuning import tuned
from suite.own_settings import MixtureArm


def build(setting: Setting, settings: Mapping[str, Any]) -> Built:
    """Choose experts, put them together, tune them; note how much each layer uses each.

    Args:
        setting: What there is.
        settings: Of a `MixtureArm`.

    Raises:
        ConfigError: There are fewer adapters than experts are asked for.
    """
    wanted = MixtureArm.model_validate(dict(settings))
    names = choose_experts(setting, wanted)
    model = mixture_of(setting, names, wanted)
    if wanted.trains == "router":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and is_router_parameter(name))
    setting = _with_rates(setting, wanted)
    built = tuned(setting, model, {"experts": names, "settings": wanted.model_dump(mode="json")})
    return Built(built.model, built.trained_parameters, {**built.notes, "use_by_layer": _use(setting)})


def mixture_of(setting: Setting, names: list[str], wanted: MixtureArm) -> nn.Module:
    """Put experts behind a router, on the base model of the setting."""
    options: dict[str, Any] = wanted.model_dump(include=set(MixtureSettings.model_fields))
    if options["router_start"] == "scores":
        nll = {score.name: score.mean_nll for score in setting.scores}
        options |= {"router_start": "random", "expert_scores": {name: -nll[name] for name in names}}
    torch.manual_seed(setting.seed)
    experts = {name: setting.bank[name].load() for name in names}
    return build_mixture(setting.lm.model, experts, seed=setting.seed, **options)


def num_parameters(setting: Setting, wanted: MixtureArm) -> int:
    """Return how many weights such a mixture trains; the base model is left as it was."""
    model = mixture_of(setting, choose_experts(setting, wanted), wanted)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    setting.lm.model = model.unload()  # type: ignore[operator]
    return count


def _with_rates(setting: Setting, wanted: MixtureArm) -> Setting:
    rate = setting.training.learning_rate
    update: dict[str, Any] = {"shot_repeats": wanted.shot_repeats}
    if wanted.router_rate != 1:
        update["router_learning_rate"] = rate * wanted.router_rate
    return replace(setting, training=setting.training.model_copy(update=update))


def _use(setting: Setting) -> dict[str, dict[str, float]]:
    """Return the mean gate of each choice in each layer, over the tokens of the shots."""
    with collect_routing(setting.lm.model) as routing:
        setting.lm.token_nll(encode(setting, setting.shots))
    return {
        layer: {name: round(gate, 4) for name, gate in gates.items()}
        for layer, gates in routing.by_layer().items()
    }
