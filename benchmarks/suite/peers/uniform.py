"""The uniform average of the experts' weight changes, `W + 1/N Σ s_i B_i A_i`, exactly and untuned."""

from collections.abc import Mapping

from peft import PeftModel
from torch import nn

from kshot.mixture import LoraExpert, build_mixture
from suite.arm import Built, Setting
from suite.own.tuning import as_it_is
from suite.peers.group import chosen_experts


def build(setting: Setting) -> Built:
    """Average the chosen experts."""
    experts = chosen_experts(setting)
    return as_it_is(setting, average(setting.lm.model, experts), {"experts": list(experts)})


def average(base: nn.Module, experts: Mapping[str, LoraExpert]) -> PeftModel:
    """Put the average of the experts on a base, beside its weights: half precision would round the sum."""
    return build_mixture(base, experts, fixed_gates=[1 / len(experts)] * len(experts))
