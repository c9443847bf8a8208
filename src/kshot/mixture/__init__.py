"""Mixtures of LoRA experts: existing PEFT LoRAs behind a trained token-wise router, as one PEFT adapter.

Importing this package makes `peft.PeftModel.from_pretrained` read saved mixtures.
"""

from kshot.mixture.build import build_mixture
from kshot.mixture.config import MixtureConfig
from kshot.mixture.contributions import (
    Contribution,
    contribution_table,
    expert_contributions,
    missing_modules,
)
from kshot.mixture.expert import ExpertOrigin, LoraExpert, LoraFactors, check_fits
from kshot.mixture.export import export_lora
from kshot.mixture.layer import MixtureLinear, is_router_parameter
from kshot.mixture.mean_routing import constant_gates, constant_gates_loss, mean_gates
from kshot.mixture.model import MixtureModel
from kshot.mixture.push import push_to_hub
from kshot.mixture.read import load_expert, read_lora
from kshot.mixture.router_loss import router_loss
from kshot.mixture.statistics import RoutingStatistics, collect_routing

__all__ = [
    "Contribution",
    "ExpertOrigin",
    "LoraExpert",
    "LoraFactors",
    "MixtureConfig",
    "MixtureLinear",
    "MixtureModel",
    "RoutingStatistics",
    "build_mixture",
    "check_fits",
    "collect_routing",
    "constant_gates",
    "constant_gates_loss",
    "contribution_table",
    "expert_contributions",
    "export_lora",
    "is_router_parameter",
    "load_expert",
    "mean_gates",
    "missing_modules",
    "push_to_hub",
    "read_lora",
    "router_loss",
]
