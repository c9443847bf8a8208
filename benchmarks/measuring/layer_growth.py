"""How the mixture's cost in one layer grows with the stacked rank.

The addition is timed alone: the base layer is replaced by one that hands out an output it already has. For T
tokens of width D = O, N experts of rank r and R = N r, in float32, the count of a forward pass is

    flops    T (2 D N + 2 N R + 2 D R + R + 2 R O + O)      router, g S, A x, times g S, B, plus W x
    bytes    4 (D N + N R + 2 D R) of weights, read; and of activations, each written and read once,
             8 T (4 N + 3 R + O), with 4 T D more for the second reading of the input
    peak     4 T (O + 3 R)                                  y, g S, A x and their product

so that time and memory are linear in R, and N enters by D N + N R alone, which is below D R for N < D / 2.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from kshot.mixture import MixtureConfig, MixtureLinear
from measuring.memory import peak_of
from measuring.rotation import Side, interleave, median

WIDTHS = (576, 2048, 4096)
NUM_EXPERTS = (4, 8, 16, 32, 64)
RANKS = (8, 16, 64)
ROWS, LENGTH = 8, 128
TOKENS = ROWS * LENGTH
TRAINED_RANK = 16  # of the forward and backward passes, which take three times as long


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What the mixture adds to one layer.

    Attributes:
        kind: `forward`, or `training` for forward and backward.
        over_base: Seconds over those of the base layer, a forward pass without the mixture.
        peak_mb: Most bytes that its tensors held at once, in 1e6; the base's output and input are not in it.
        counted_peak_mb: The same by the count above; forward only, as is `counted_gflop`.
    """

    kind: str
    width: int
    num_experts: int
    r: int
    stacked_rank: int
    seconds: float
    over_base: float
    gflop_per_second: float | None
    counted_gflop: float | None
    counted_mb_moved: float | None
    peak_mb: float
    counted_peak_mb: float | None


class _Ready(nn.Linear):
    """A linear layer whose output is there already."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, bias=False)
        self.requires_grad_(False)
        self.ready = torch.randn(ROWS, LENGTH, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.ready


def measure_layers(rounds: int) -> tuple[list[LayerCost], dict[str, dict[str, float]]]:
    """Return the cost of each layer and, for each width, how it grows: exponents over the stacked rank."""
    costs = [cost for width in WIDTHS for cost in _measure_width(width, rounds)]
    return costs, {f"{kind} d={width}": _growth(costs, kind, width) for kind, width in _series()}


def _series() -> Iterator[tuple[str, int]]:
    yield from ((kind, width) for kind in ("forward", "training") for width in WIDTHS)


def _measure_width(width: int, rounds: int) -> Iterator[LayerCost]:
    torch.manual_seed(0)
    x_BTD = torch.randn(ROWS, LENGTH, width)
    base = nn.Linear(width, width, bias=False).requires_grad_(False)
    ready = _Ready(width)
    layers = {(n, r): _layer(ready, n, r) for n in NUM_EXPERTS for r in RANKS}
    runs = {("forward", *key): partial(_forward, layer, x_BTD) for key, layer in layers.items()}
    runs |= {
        ("training", *key): partial(_train, layer, x_BTD)
        for key, layer in layers.items()
        if key[1] == TRAINED_RANK
    }
    sides = {str(key): Side(run) for key, run in runs.items()}
    seconds = interleave({"base": Side(partial(_forward, base, x_BTD)), **sides}, rounds)
    base_seconds = median(seconds, "base")
    for (kind, n, r), run in runs.items():
        taken = median(seconds, str((kind, n, r)))
        forward = kind == "forward"
        gflop = counted_flops(width, n, n * r) / 1e9
        yield LayerCost(
            kind=kind,
            width=width,
            num_experts=n,
            r=r,
            stacked_rank=n * r,
            seconds=round(taken, 6),
            over_base=round(taken / base_seconds, 4),
            gflop_per_second=round(gflop / taken, 1) if forward else None,
            counted_gflop=round(gflop, 3) if forward else None,
            counted_mb_moved=round(counted_bytes_moved(width, n, n * r) / 1e6, 2) if forward else None,
            peak_mb=round(peak_of(run) / 1e6, 2),
            counted_peak_mb=round(counted_peak_bytes(width, n * r) / 1e6, 2) if forward else None,
        )


def _layer(base: nn.Module, num_experts: int, r: int) -> MixtureLinear:
    config = MixtureConfig(
        expert_names=[f"expert-{number}" for number in range(num_experts)],
        module_groups=[{"modules": ["layer"], "ranks": [r] * num_experts, "scalings": [2.0] * num_experts}],
    )
    layer = MixtureLinear(base, "default", config, "layer")
    nn.init.normal_(layer.mixture_B["default"], std=0.01)
    return layer


@torch.no_grad()
def _forward(layer: nn.Module, x_BTD: torch.Tensor) -> None:
    layer(x_BTD)


def _train(layer: nn.Module, x_BTD: torch.Tensor) -> None:
    y_BTO = layer(x_BTD.detach().requires_grad_())  # as inside a model, whose earlier layers learn too
    y_BTO.backward(x_BTD)
    layer.zero_grad(set_to_none=True)


def counted_flops(width: int, num_experts: int, stacked_rank: int) -> int:
    """Floating point operations of a forward pass."""
    a_token = 2 * num_experts * (width + stacked_rank) + 4 * width * stacked_rank + stacked_rank + width
    return TOKENS * a_token


def counted_bytes_moved(width: int, num_experts: int, stacked_rank: int) -> int:
    """Bytes that a forward pass reads and writes at least."""
    weights = num_experts * (width + stacked_rank) + 2 * width * stacked_rank
    return 4 * weights + TOKENS * (8 * (4 * num_experts + 3 * stacked_rank + width) + 4 * width)


def counted_peak_bytes(width: int, stacked_rank: int) -> int:
    """Most bytes that a forward pass holds at once."""
    return 4 * TOKENS * (width + 3 * stacked_rank)


def _growth(costs: list[LayerCost], kind: str, width: int) -> dict[str, float]:
    """Exponents p of a fit `cost ~ R^p`, least squares in the logarithms."""
    own = [cost for cost in costs if cost.kind == kind and cost.width == width]
    ranks = [math.log(cost.stacked_rank) for cost in own]
    return {
        name: round(float(np.polyfit(ranks, [math.log(getattr(cost, name)) for cost in own], 1)[0]), 3)
        for name in ("seconds", "peak_mb")
    }


def as_rows(costs: list[LayerCost]) -> list[dict[str, object]]:
    """Return costs for JSON."""
    return [asdict(cost) for cost in costs]
