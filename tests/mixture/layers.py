"""A mixture in one linear layer; mixtures in a small model, and what they compute, as a loop."""

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn import functional

from kshot.mixture import MixtureConfig, MixtureLinear
from kshot.mixture.model import mixture_layers

INPUTS, HIDDEN, OUTPUTS = 7, 4, 5


def make_layer(
    ranks: list[int],
    scalings: list[float] | None = None,
    dtype: torch.dtype = torch.float64,
    random: bool = True,
    **options: Any,
) -> MixtureLinear:
    """A layer with random experts and router."""
    config = MixtureConfig(
        expert_names=[f"expert {e}" for e in range(len(ranks))],
        module_groups=[{"modules": ["proj"], "ranks": ranks, "scalings": scalings or [1.0] * len(ranks)}],
        **options,
    )
    layer = MixtureLinear(nn.Linear(INPUTS, OUTPUTS, dtype=dtype), "default", config, "proj")
    if random:
        for name, parameter in layer.named_parameters():
            if "mixture" in name:
                nn.init.normal_(parameter)
    return layer


def experts_of(layer: MixtureLinear, module: str = "proj") -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """(A, B, scaling) of each expert, cut out of the stack."""
    ranks, scalings = layer.mixture_config["default"].sizes(module)
    As = layer.mixture_A["default"].split(ranks)
    Bs = layer.mixture_B["default"].split(ranks, dim=1)
    return list(zip(As, Bs, scalings, strict=True))


class Block(nn.Module):
    """Two linear layers of one layer of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(INPUTS, HIDDEN, dtype=torch.float64)
        self.down = nn.Linear(HIDDEN, INPUTS, dtype=torch.float64)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(functional.softsign(self.up(x_BTD)))


class Blocks(nn.Module):
    """A model of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(
        self,
        x_BTD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = x_BTD + layer(x_BTD)
        return x_BTD


def make_blocks(ranks: dict[str, list[int]], scalings: list[float], **options: Any) -> PeftModel:
    """A mixture in the modules of `ranks`, in both layers, all parts random."""
    groups = [
        {"modules": [f"layers.{i}.{kind}" for i in (0, 1)], "ranks": of_kind, "scalings": scalings}
        for kind, of_kind in ranks.items()
    ]
    config = MixtureConfig(
        expert_names=[f"expert {e}" for e in range(len(scalings))], module_groups=groups, **options
    )
    model = get_peft_model(Blocks(), config).eval()
    for name, parameter in model.named_parameters():
        if "mixture" in name:
            nn.init.normal_(parameter)
    return model


def loop(model: PeftModel, x_BTD: torch.Tensor, prompt_BT: torch.Tensor) -> torch.Tensor:
    """The formulas as written: row by row, token by token, expert by expert."""
    layers, config = mixture_layers(model, "default"), model.peft_config["default"]
    base = model.get_base_model()
    rows = []
    for x_TD, prompt_T in zip(x_BTD, prompt_BT, strict=True):
        for i in (0, 1):
            h_TD, lent = x_TD, None
            for kind in ("up", "down"):
                name = f"layers.{i}.{kind}"
                if name not in layers:
                    h_TD = getattr(base.layers[i], kind)(h_TD)
                else:
                    layer = layers[name]
                    if config.router_scope == "module" or lent is None:
                        lent = loop_gates(layer, h_TD, prompt_T)
                    h_TD = torch.stack([mixed(layer, x_D, g) for x_D, g in zip(h_TD, lent, strict=True)])
                h_TD = functional.softsign(h_TD) if kind == "up" else h_TD
            x_TD = x_TD + h_TD
        rows.append(x_TD)
    return torch.stack(rows)


def loop_gates(
    layer: MixtureLinear, x_TD: torch.Tensor, prompt_T: torch.Tensor
) -> list[dict[int, torch.Tensor]]:
    """The gate of each chosen expert, for each token."""
    config, router = layer.mixture_config["default"], layer.mixture_router["default"]
    if config.router_granularity == "sequence":
        read = [x_D for x_D, in_prompt in zip(x_TD, prompt_T, strict=True) if in_prompt]
        seen = [sum(read) / len(read) if read else torch.zeros_like(x_TD[0])] * len(x_TD)
    else:
        seen = list(x_TD)
    gates = []
    for x_D in seen:
        logits = [row_D @ x_D for row_D in router.weight]
        logits = [logit.abs() if config.router_start == "directions" else logit for logit in logits]
        if config.router_prior is not None:
            logits = [logit + prior for logit, prior in zip(logits, router.bias, strict=True)]
        logits = [logit / config.router_temperature for logit in logits]
        top = sorted(range(len(logits)), key=lambda e: -logits[e].item())[: config.top_k]
        total = sum(logits[e].exp() for e in top)
        gates.append({e: logits[e].exp() / total for e in top})
    return gates


def mixed(layer: MixtureLinear, x_D: torch.Tensor, gates: dict[int, torch.Tensor]) -> torch.Tensor:
    config = layer.mixture_config["default"]
    experts = experts_of(layer, layer.module_name)
    y_O = layer.base_layer.weight @ x_D + layer.base_layer.bias
    for e, gate in gates.items():
        if e < len(experts):  # else it is the null expert
            A, B, scaling = experts[e]
            y_O = y_O + gate * scaling * (B @ (A @ x_D))
    if config.shared_r:
        scaling = config.shared_alpha / config.shared_r if config.shared_alpha else 1
        shared_A, shared_B = layer.mixture_shared_A["default"], layer.mixture_shared_B["default"]
        y_O = y_O + scaling * (shared_B @ (shared_A @ x_D))
    return y_O
