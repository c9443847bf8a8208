"""What each adapter would do to the loss on the shots, foretold from its factors alone.

An adapter moves W by s B A. To first order the loss moves by the sum over modules of `<G, s B A>`, which is
`s Σ_r (Bᵀ G) ∘ A`, G being the gradient. Real adapters are no small steps: most of what they do to the loss
is curvature, which squares of such products with drawn gradients measure (see `loss_gradients`).

Shapes: D inputs of a module   O its outputs   M adapters of a block   R their ranks together   S draws
        P passes: the loss, then the draws
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from kshot.errors import AdapterError
from kshot.experts.loss_gradients import LossGradients
from kshot.mixture import LoraExpert

_LAYER = re.compile(r"^(.*?\.\d+)\.")  # the name of a layer begins those of its modules


@dataclass(frozen=True, slots=True)
class Expansion:
    """The loss along one adapter, in nats.

    Attributes:
        slope: To first order; less is better.
        curvature: Half the mean over the draws of the square of the adapter's product with a draw.
        by_layer: The same, each layer's product squared by itself. Its mean is less than the curvature, since
            layers of an adapter work together; but with few draws it is known much better.
    """

    slope: float
    curvature: float
    by_layer: float


def foretell_changes(expansions: Mapping[str, Expansion]) -> dict[str, float]:
    """Return `slope + c · by_layer` by name, in nats.

    c is the median over the adapters of `curvature / by_layer`: by how much layers that work together exceed
    layers by themselves.
    """
    ratios = [one.curvature / one.by_layer for one in expansions.values() if one.by_layer > 0]
    together = median(ratios) if ratios else 0.0
    return {name: one.slope + together * one.by_layer for name, one in expansions.items()}


@torch.no_grad()
def expand_loss(gradients: LossGradients, experts: Sequence[LoraExpert]) -> dict[str, Expansion]:
    """Return the loss along each adapter, by name.

    Of all adapters of a block and each pass, a module takes one matrix product, (R, O) x (O, D): `2 R O D`
    operations, which run at the processor's full rate from R = 512 on.

    Args:
        gradients: Of the base on the shots.
        experts: A block of adapters, all in memory.

    Raises:
        AdapterError: An adapter has a module without a gradient, or of another shape.
    """
    for expert in experts:
        check_gradients(gradients, expert)
    by_layer: dict[str, Tensor] = {}
    for module in sorted({module for expert in experts for module in expert.factors}):
        match = _LAYER.match(module)
        layer, products_PM = match[1] if match else module, _products(gradients, experts, module)
        by_layer[layer] = by_layer[layer] + products_PM if layer in by_layer else products_PM
    if not by_layer:
        return {}
    whole_PM = torch.stack(list(by_layer.values())).sum(dim=0)
    slope_M, num_draws = whole_PM[0], max(1, len(whole_PM) - 1)
    curvature_M = whole_PM[1:].square().sum(dim=0) / 2 / num_draws
    squares_LPM = torch.stack(list(by_layer.values()))[:, 1:].square()
    by_layer_M = squares_LPM.sum(dim=(0, 1)) / 2 / num_draws
    return {
        expert.name: Expansion(*map(float, numbers))
        for expert, *numbers in zip(experts, slope_M, curvature_M, by_layer_M, strict=True)
    }


def _products(gradients: LossGradients, experts: Sequence[LoraExpert], module: str) -> Tensor:
    """(P, M) products of gradients and weight changes in one module; 0 where an adapter lacks it."""
    members = [place for place, expert in enumerate(experts) if module in expert.factors]
    factors = [experts[place].factors[module] for place in members]
    A_RD = torch.cat([one.A_rI for one in factors]).float()
    B_OR = torch.cat([one.B_Or for one in factors], dim=1).float()
    terms_PR = torch.stack(
        [(B_OR.T @ G_OD).mul_(A_RD).sum(dim=1, dtype=torch.float64) for G_OD in gradients.by_module[module]]
    )
    sizes = torch.tensor([one.r for one in factors])
    scaling_R = torch.tensor([one.scaling for one in factors], dtype=torch.float64).repeat_interleave(sizes)
    owner_R = torch.tensor(members).repeat_interleave(sizes)
    products_PM = torch.zeros(len(terms_PR), len(experts), dtype=torch.float64)
    return products_PM.index_add_(1, owner_R, terms_PR * scaling_R)


def check_gradients(gradients: LossGradients, expert: LoraExpert) -> None:
    """Check that there is a gradient for every module of an adapter.

    Raises:
        AdapterError: Names the first module without one, or of another shape.
    """
    for module, factors in expert.factors.items():
        if module not in gradients.by_module:
            raise AdapterError(
                f"{expert.name!r}: expected an adapter of the {len(gradients.by_module)} linear modules that "
                f"gradients were taken of, got {module}: choose adapters of this base model, and verify the "
                "index of the bank"
            )
        _, *want = gradients.by_module[module].shape
        got = [factors.B_Or.shape[0], factors.A_rI.shape[1]]
        if want != got:
            raise AdapterError(
                f"{expert.name!r} was trained on another base: expected {want[0]}x{want[1]} (outputs x "
                f"inputs) in {module}, got {got[0]}x{got[1]}: choose adapters of this base model"
            )
