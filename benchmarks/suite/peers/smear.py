"""SMEAR-style soft merging (arXiv 2306.03745): each example gets one expert, the average of all.

A router in each module reads the mean of the prompt's hidden states there; its softmax weights the experts'
parameters, which for a LoRA are its weight change: `W + Σ g_i s_i B_i A_i`, one sum for the whole example.
By linearity that is a mixture with all experts on and one decision for a sequence, which is what is built
here. (A and B averaged apart would bring in products of one expert's B with another's A.) Router and experts
are trained together. The paper's experts are bottleneck adapters trained from scratch; here they start
from the bank, and there is no expert dropout.
"""

from collections.abc import Mapping

from peft import PeftModel
from torch import nn

from kshot.mixture import LoraExpert, build_mixture
from suite.arm import Built, Setting
from suite.own.tuning import tuned
from suite.peers.group import chosen_experts


def build(setting: Setting) -> Built:
    """Train router and experts on shots and rows."""
    experts = chosen_experts(setting)
    model = soften(setting.lm.model, experts, seed=setting.seed)
    return tuned(setting, model, {"experts": list(experts)})


def soften(base: nn.Module, experts: Mapping[str, LoraExpert], *, seed: int = 0) -> PeftModel:
    """Put the experts on a base behind untrained routers."""
    return build_mixture(
        base, experts, top_k=len(experts), router_granularity="sequence", router_scope="module", seed=seed
    )
