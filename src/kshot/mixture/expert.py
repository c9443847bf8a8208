"""A LoRA expert: an adapter as its factors, module by module, and where it came from.

D inputs of a module   O outputs   r rank
"""

import math
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import nn

from kshot.errors import AdapterError

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """One module's weight change, `scaling * B_Or @ A_rI`, with the tensors as stored.

    Attributes:
        A_rI: (r, inputs), floating point.
        B_Or: (outputs, r), same kind.
        scaling: `lora_alpha / r`, or `lora_alpha / sqrt(r)` under rsLoRA; patterns applied.
    """

    A_rI: torch.Tensor
    B_Or: torch.Tensor
    scaling: float

    @property
    def r(self) -> int:
        """Rank."""
        return self.A_rI.shape[0]


class ExpertOrigin(TypedDict):
    """Where an expert came from, as it is kept with a mixture; JSON can hold it.

    Attributes:
        name: What the mixture calls the expert.
        source: A Hub id with its revision, or a folder's name; never a path of the machine.
        base_model: `base_model_name_or_path` of the adapter, which may be wrong.
        licence: `license` of the adapter's model card.
        converted_from: The kind of adapter it was, such as DORA or LOHA; None for a plain LoRA.
        conversion_error: `||dW - s B A|| / ||dW||` (Frobenius) over all modules; None for a plain LoRA.
    """

    name: str
    source: str
    base_model: str | None
    licence: str | None
    converted_from: str | None
    conversion_error: float | None


@dataclass(frozen=True, slots=True, eq=False)
class LoraExpert:
    """A LoRA adapter as factors; its shapes agree within each module and its numbers are finite.

    Attributes:
        name: What the mixture calls it; never part of a state-dict key.
        base_model: `base_model_name_or_path` of the folder, which may be missing or wrong: shapes decide.
        factors: Keyed by the module's name in the base model, sorted.
        origin: Where it came from, if known.
        conversion_errors: `||dW - s B A|| / ||dW||` (Frobenius) of each module, if converted.

    Raises:
        AdapterError: No factors, factors that do not multiply, or numbers that are not finite.
    """

    name: str
    base_model: str | None
    factors: dict[str, LoraFactors]
    origin: ExpertOrigin | None = None
    conversion_errors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.factors:
            raise AdapterError(
                f"expert {self.name!r}: expected LoRA weights, got none: train it, or leave it out"
            )
        for module, factors in self.factors.items():
            _check_factors(f"expert {self.name!r}, module {module}", factors)
        object.__setattr__(self, "factors", dict(sorted(self.factors.items())))


def check_fits(expert: LoraExpert, base_model: nn.Module) -> None:
    """Check that every module of `expert` exists in `base_model` with the same inputs and outputs.

    Raises:
        AdapterError: Names the first module that does not fit, both shapes, and how many others there are.
    """
    modules = dict(base_model.named_modules())
    faults = []
    for module, factors in expert.factors.items():
        want = linear_shape(modules[module]) if module in modules else None
        got = (factors.B_Or.shape[0], factors.A_rI.shape[1])
        if want != got:
            found = f"{want[0]}x{want[1]}" if want else "no such linear layer"
            faults.append(f"{module}: expert {got[0]}x{got[1]}, base model {found}")
    if faults:
        others = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise AdapterError(
            f"expert {expert.name!r} was trained on another base: expected the base model's shapes "
            f"(outputs x inputs), got {faults[0]}{others}: choose experts of this base model"
        )


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Outputs and inputs of a linear layer, quantised or not, or of GPT-2's Conv1D; else None."""
    if is_transposed(module):
        inputs, outputs = module.weight.shape  # type: ignore[misc]
        return int(outputs), int(inputs)
    outputs, inputs = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (outputs, inputs) if isinstance(outputs, int) and isinstance(inputs, int) else None


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (inputs, outputs), as in transformers' Conv1D."""
    return type(module).__name__ == "Conv1D"


def _check_factors(where: str, factors: LoraFactors) -> None:
    A_rI, B_Or = factors.A_rI, factors.B_Or
    shapes = f"A {tuple(A_rI.shape)} and B {tuple(B_Or.shape)}"
    if A_rI.ndim != 2 or B_Or.ndim != 2 or A_rI.shape[0] != B_Or.shape[1] or 0 in (*A_rI.shape, *B_Or.shape):
        raise AdapterError(
            f"{where}: expected A (r, inputs) and B (outputs, r) of a linear layer, got {shapes}: "
            "save the adapter again, or leave it out"
        )
    for side, tensor in (("lora_A", A_rI), ("lora_B", B_Or)):
        if tensor.dtype not in WEIGHT_DTYPES:
            raise AdapterError(
                f"{where}: expected {side} in float64, float32, float16 or bfloat16, got {tensor.dtype}: "
                "convert the adapter"
            )
        if not _is_finite(tensor):
            raise AdapterError(f"{where}: expected finite weights, got NaN or inf in {side}: train it again")
    if not math.isfinite(factors.scaling):
        raise AdapterError(
            f"{where}: expected a finite scaling, got {factors.scaling}: mend lora_alpha in its config"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are. A sum tells, in a quarter of the time, unless it overflows itself."""
    return math.isfinite(float(tensor.sum(dtype=torch.float64))) or bool(torch.isfinite(tensor).all())
