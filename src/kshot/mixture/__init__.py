"""Mixtures of LoRA experts: existing PEFT LoRAs behind a trained token-wise router, as one PEFT adapter.

Importing this package makes `peft.PeftModel.from_pretrained` read saved mixtures.
"""

from kshot.mixture.build import build_mixture
from kshot.mixture.config import MixtureConfig
from kshot.mixture.expert import LoraExpert, LoraFactors, check_fits, read_lora
from kshot.mixture.export import export_lora
from kshot.mixture.layer import MixtureLinear, is_router_parameter
from kshot.mixture.load_balancing import router_loss
from kshot.mixture.model import MixtureModel
from kshot.mixture.row_gates import set_row_gates

__all__ = [
    "LoraExpert",
    "LoraFactors",
    "MixtureConfig",
    "MixtureLinear",
    "MixtureModel",
    "build_mixture",
    "check_fits",
    "export_lora",
    "is_router_parameter",
    "read_lora",
    "router_loss",
    "set_row_gates",
]
