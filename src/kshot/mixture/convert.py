"""From any adapter whose layers are linear in their input to the nearest LoRA, module by module.

O outputs   I inputs of a module   r rank   S, L shorter and longer side of a weight   B batch   T tokens
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from kshot.errors import AdapterError
from kshot.mixture.expert import LoraFactors
from kshot.mixture.put_on import AdaptedLayer, put_on_stand_in
from kshot.mixture.stand_in import dense_linear, dense_weight

# Some kinds compute in float32 inside (C3A, DEFT), up to 3e-6 off; what is not linear (Lily) is 1e-2 off.
_LINEAR_TOLERANCE = 1e-4
_ROUNDING = 1e-9  # of an output, in float64
# Directions below this part of the largest are left out: float32 factors do not resolve them beside it.
_RESOLUTION = 1e-7


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of an adapter.

    Attributes:
        factors: By module; scaling 1, A and B alike in size, float32.
        errors: `||dW - B A|| / ||dW||` (Frobenius) of each module; 0 where dW is 0.
        error: The same over all modules at once.
    """

    factors: dict[str, LoraFactors]
    errors: dict[str, float]
    error: float


@torch.no_grad()
def convert_adapter(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], base_model: nn.Module, rank: int
) -> Conversion:
    """Find the LoRA of rank at most `rank` that is nearest to an adapter's change of each weight.

    PEFT puts the adapter on a stand-in for the base model. `dW` of a layer is what its own forward adds to
    the base's on the unit vectors, in float64, one layer at a time: so it holds for every kind whose layers
    are linear, which is checked, and for what PEFT's `convert_to_lora` does not see (DoRA's magnitude) or
    declines (OFT, IA3). The nearest LoRA is exact if dW has no larger rank, as that of LoHa at
    `rank >= r**2`. Ranks that a module does not need are not used.

    Args:
        folder: Named in errors.
        config: Its settings.
        tensors: Its weights, as stored.
        base_model: Is read, and not changed in any way.
        rank: >= 1.

    Raises:
        AdapterError: The adapter is of another base, has weights outside of linear layers, changes biases, or
            is not linear.
    """
    factors, errors = {}, {}
    lost = total = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT has to say of a stand-in is of no use to the user
        for module, layer in put_on_stand_in(folder, config, tensors, base_model).items():
            change_OI = weight_change(layer, f"{folder}, module {module}")
            factors[module] = nearest_lora(change_OI, rank)
            norm, off = change_OI.norm().item(), _distance(change_OI, factors[module])
            errors[module] = off / norm if norm else 0.0
            lost, total = math.hypot(lost, off), math.hypot(total, norm)
    return Conversion(factors, errors, lost / total if total else 0.0)


@torch.no_grad()
def weight_change(layer: AdaptedLayer, where: str) -> torch.Tensor:
    """Return what an adapted layer adds to its base's weight, (O, I), float64.

    Args:
        layer: One of PEFT's, on a linear layer of a stand-in; its adapter is left in float64.
        where: Named in errors.

    Raises:
        AdapterError: The layer changes the bias, is not linear, or gives NaN or inf.
    """
    holder = layer
    while isinstance(holder.base_layer, BaseTunerLayer):
        holder = cast(AdaptedLayer, holder.base_layer)
    base = cast(nn.Module, holder.base_layer)
    weight_OI = dense_weight(base)
    device = "cpu" if weight_OI.device.type == "mps" else weight_OI.device  # which has no float64
    weight_OI = weight_OI.to(device, torch.float64)
    bias_O = cast(torch.Tensor | None, getattr(base, "bias", None))
    bias_O = None if bias_O is None else bias_O.to(weight_OI)
    holder.base_layer = dense_linear(weight_OI, bias_O, like=base)
    layer.to(device, torch.float64)
    try:
        inputs = weight_OI.shape[1]
        eye_1II = torch.eye(inputs).to(weight_OI)[None]
        at_zero_O = _output(layer, eye_1II.new_zeros(1, 1, inputs))[0, 0]
        change_OI = (_output(layer, eye_1II)[0] - at_zero_O).T - weight_OI
        if not torch.isfinite(change_OI).all():
            raise AdapterError(f"{where}: expected finite weights, got NaN or inf: train it again")
        _check_bias(at_zero_O, bias_O, where)
        _check_linear(layer, weight_OI, change_OI, at_zero_O, where)
    finally:
        holder.base_layer = base  # the dense copy is not kept
    return change_OI


@torch.no_grad()
def nearest_lora(change_OI: torch.Tensor, rank: int) -> LoraFactors:
    """Return the LoRA of rank at most `rank` nearest to a change of a weight in the Frobenius norm.

    It is that of the SVD, from the eigenvectors of the smaller Gram matrix, which takes less time. What
    float64 loses by squaring, singular values below 1e-8 of the largest, is left out anyway.

    Args:
        change_OI: float64.
        rank: >= 1.
    """
    outputs, inputs = change_OI.shape
    change_SL = change_OI if outputs <= inputs else change_OI.T
    directions_SS = torch.linalg.eigh(change_SL @ change_SL.T).eigenvectors.flip(-1)  # largest first
    left_Sr = directions_SS[:, :rank]
    right_rL = left_Sr.T @ change_SL
    sizes_r = right_rL.norm(dim=1)
    kept_r = sizes_r > _RESOLUTION * sizes_r.max()
    if not kept_r.any():  # nothing was learnt here; the module stays, with one rank
        kept_r[0], sizes_r[0] = True, 1.0
    root_r = sizes_r[kept_r].sqrt()
    left_Sr, right_rL = left_Sr[:, kept_r] * root_r, right_rL[kept_r] / root_r[:, None]
    B_Or, A_rI = (left_Sr, right_rL) if outputs <= inputs else (right_rL.T, left_Sr.T)
    return LoraFactors(A_rI.float().contiguous(), B_Or.float().contiguous(), 1.0)


def _distance(change_OI: torch.Tensor, factors: LoraFactors) -> float:
    product_OI = factors.B_Or.double() @ factors.A_rI.double()
    return float((change_OI - product_OI).norm())


def _output(layer: AdaptedLayer, x_BTI: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, layer(x_BTI)).double()


def _check_bias(at_zero_O: torch.Tensor, bias_O: torch.Tensor | None, where: str) -> None:
    bias_O = torch.zeros_like(at_zero_O) if bias_O is None else bias_O
    if (at_zero_O - bias_O).norm() > _LINEAR_TOLERANCE * bias_O.norm():
        raise AdapterError(
            f"{where}: expected an adapter of weights alone, got one that changes the bias too, which a LoRA "
            "cannot: leave it out"
        )


def _check_linear(
    layer: AdaptedLayer,
    weight_OI: torch.Tensor,
    change_OI: torch.Tensor,
    at_zero_O: torch.Tensor,
    where: str,
) -> None:
    """Compare a few random inputs with what the weights say of them."""
    draw = torch.Generator().manual_seed(0)
    x_BTI = torch.randn(2, 3, weight_OI.shape[1], generator=draw).to(weight_OI)
    y_BTO = _output(layer, x_BTI)
    change_BTO = x_BTI @ change_OI.T
    off = (y_BTO - at_zero_O - x_BTI @ weight_OI.T - change_BTO).norm()
    if off > _LINEAR_TOLERANCE * change_BTO.norm() + _ROUNDING * y_BTO.norm():
        raise AdapterError(
            f"{where}: expected an adapter whose output is linear in its input, got one whose output is not: "
            "leave it out"
        )
