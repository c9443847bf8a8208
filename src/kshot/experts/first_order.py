"""By how much an adapter would change the loss on the shots, to first order, from its factors alone.

An adapter moves W by s B A, so that the loss moves by about Σ over modules of
<G, s B A> = Σ_r s ((Bᵀ G) ∘ A), where G = dL/dW of the base. Exact for small steps only.

Shapes: L modules   D inputs of a module   O its outputs   M adapters of a block   R their ranks together
"""

from collections.abc import Sequence

import torch

from kshot.errors import AdapterError
from kshot.experts.loss_gradients import LossGradients
from kshot.mixture import LoraExpert


@torch.no_grad()
def first_order_changes(gradients: LossGradients, experts: Sequence[LoraExpert]) -> dict[str, float]:
    """Return the change of the loss by name, in nats; less is better.

    Of all adapters of a block, a module takes one matrix product, (R, O) x (O, D): `2 R O D` operations that
    run at the processor's full rate from R = 512 on.

    Args:
        gradients: Of the base on the shots.
        experts: A block of adapters, all in memory.

    Raises:
        AdapterError: An adapter has a module without a gradient, or of another shape.
    """
    for expert in experts:
        check_gradients(gradients, expert)
    totals_M = torch.zeros(len(experts), dtype=torch.float64)
    for module in sorted({module for expert in experts for module in expert.factors}):
        members = [place for place, expert in enumerate(experts) if module in expert.factors]
        factors = [experts[place].factors[module] for place in members]
        A_RD = torch.cat([factor.A_rI for factor in factors]).float()
        B_OR = torch.cat([factor.B_Or for factor in factors], dim=1).float()
        terms_R = (B_OR.T @ gradients.by_module[module]).mul_(A_RD).sum(dim=1, dtype=torch.float64)
        sizes = torch.tensor([factor.r for factor in factors])
        scaling_R = torch.tensor([factor.scaling for factor in factors], dtype=torch.float64)
        owner_R = torch.tensor(members).repeat_interleave(sizes)
        totals_M.index_add_(0, owner_R, terms_R * scaling_R.repeat_interleave(sizes))
    return {expert.name: float(total) for expert, total in zip(experts, totals_M, strict=True)}


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
        want = tuple(gradients.by_module[module].shape)
        got = (factors.B_Or.shape[0], factors.A_rI.shape[1])
        if want != got:
            raise AdapterError(
                f"{expert.name!r} was trained on another base: expected {want[0]}x{want[1]} (outputs x "
                f"inputs) in {module}, got {got[0]}x{got[1]}: choose adapters of this base model"
            )
